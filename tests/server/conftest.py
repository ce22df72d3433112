"""The models of a server, without the server: what a front end finds behind it."""

import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from server.config.settings import Settings
from server.errors import ProviderUnavailable
from server.repository.repository import Repository
from server.runtime import providers, sessions
from server.runtime.providers import ProviderChoice, openvino_device
from server.runtime.session import Session


@pytest.fixture(scope="session")
def openvino():
    """OpenVINO's device; a test that needs it is skipped where there is none, with the server's own reason."""
    try:
        return openvino_device()
    except ProviderUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def openvino_or_stand_in(monkeypatch):
    """OpenVINO, for tests of what runs on which provider: where it has no device, its sessions run on the CPU."""
    try:
        return openvino_device()
    except ProviderUnavailable:
        monkeypatch.setattr(providers, "openvino_device", lambda: "a stand-in")

    def open_stand_in(artifact, choice, settings, *, device=0, precision=None, **options):
        if choice.provider != "openvino":
            return real(artifact, choice, settings, device=device, **options)
        session = real(artifact, ProviderChoice("cpu"), settings)
        return Session(session.ort, provider="openvino", precision=precision or session.precision, device=device)

    real = sessions.open_session
    monkeypatch.setattr(sessions, "open_session", open_stand_in)
    return "a stand-in"


@pytest.fixture
def socket_path():
    """A path for a Unix-domain socket: of few bytes, which not every temporary directory of pytest has."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory) / "affinity.sock"


@asynccontextmanager
async def opened(artifacts, *models, listener=None, **settings):
    """A repository with these models loaded, drained in the end."""
    defaults = {"artifacts": artifacts, "models": models, "provider": "cpu", "threads": 1, "tune": "off"}
    repository = Repository(Settings(**defaults | settings), listener)
    try:
        await repository.load_all()
        yield repository
    finally:
        await repository.drain()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def repository(artifacts):
    """All encoders and vision models; its tests share their module's event loop with it."""
    names = ("tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-vit", "tiny-mixer")
    async with opened(artifacts, *names) as repository:
        yield repository
