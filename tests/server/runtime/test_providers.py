"""Each model runs on the best provider that can run it, and the log says why a better one cannot."""

import functools
import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from server.admission.queue import RequestContext
from server.batching.warm_up import WarmUp
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.runtime import providers, sessions
from server.runtime.cuda import cuda_problem
from server.runtime.providers import OPENVINO_PACKAGE, find_providers, openvino_device
from server.tasks import build
from tests.server.conftest import opened

CONTEXT = RequestContext()
pytestmark = pytest.mark.skipif(cuda_problem(0) is None, reason="CUDA can be used here")


@pytest.fixture
def fresh_registration(monkeypatch):
    """A process without registered libraries, and a runtime with the devices that a test sets."""

    def make(*, devices, registered=lambda: None):
        said = []

        def register(name, path):
            assert (name, path) == ("openvino", "plugin.so")
            said.append(path)
            if len(said) > 1:
                raise runtime.Fail("EP library is already registered under openvino")
            registered()

        monkeypatch.setattr(providers.onnxruntime, "register_execution_provider_library", register)
        monkeypatch.setattr(providers, "_openvino_devices", lambda: devices if said else [])
        monkeypatch.setattr(providers, "_register_openvino", functools.cache(providers._register_openvino.__wrapped__))

    plugin = SimpleNamespace(get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", plugin)
    return make


def test_a_device_of_openvino_is_found_repeatedly(fresh_registration):
    fresh_registration(devices=["a device"])
    assert [openvino_device(), openvino_device()] == ["a device", "a device"]
    assert str(find_providers(Settings())) == "openvino or cpu"


def no_library():
    raise runtime.Fail("libtbb.so.12: cannot open shared object file")


@pytest.mark.parametrize(
    ("registered", "reason"),
    [
        (lambda: None, f"{OPENVINO_PACKAGE} found no device it can use; it supports Intel CPUs only"),
        (no_library, "libtbb.so.12: cannot open shared object file"),
    ],
)
def test_every_error_of_openvino_has_the_reason_of_the_first(registered, reason, fresh_registration):
    fresh_registration(devices=[], registered=registered)
    for _ in range(3):
        with pytest.raises(ProviderUnavailable, match=f"^provider openvino cannot run here: {reason}$"):
            find_providers(Settings(provider="openvino"))
        automatic = find_providers(Settings())
        assert str(automatic) == "cpu"
        assert automatic.reason.endswith(f"; provider openvino cannot run here: {reason}")


@pytest.mark.parametrize(
    ("machine", "hint"),
    [
        ("x86_64", f"pip install {OPENVINO_PACKAGE}"),
        ("aarch64", f"{OPENVINO_PACKAGE} exists for x86-64 only, this machine is aarch64"),
    ],
)
def test_without_its_package_openvino_cannot_be_chosen(machine, hint, fresh_registration, monkeypatch):
    fresh_registration(devices=[])
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_openvino", None)  # as if it were not installed
    monkeypatch.setattr(providers.platform, "machine", lambda: machine)
    with pytest.raises(ProviderUnavailable) as refusal:
        find_providers(Settings(provider="openvino"))
    assert str(refusal.value).startswith("provider openvino cannot run here: import of onnxruntime_ep_openvino halted")
    assert str(refusal.value).endswith(f"({hint})")


@pytest.mark.usefixtures("openvino_or_stand_in")
async def test_auto_runs_models_on_openvino_and_those_it_cannot_run_on_the_cpu(artifacts, caplog):
    caplog.set_level(logging.INFO, "server")
    async with opened(artifacts, "tiny-bert", "tiny-gpt", "tiny-vit", provider="auto") as repository:
        providers = {model.name: model.provider for model in repository.models()}
    assert providers == {"tiny-bert": "openvino", "tiny-gpt": "cpu", "tiny-vit": "openvino"}
    assert "running on openvino or cpu: provider cuda cannot run here: " in caplog.text
    assert "generation over a cache does not run on OpenVINO" in caplog.text
    assert "running on cpu instead" in caplog.text


@pytest.mark.usefixtures("openvino_or_stand_in")
async def test_a_model_that_is_out_of_tolerance_on_openvino_runs_on_the_cpu(artifacts, caplog, monkeypatch):
    def check_parity(session, artifact):
        if session.provider == "openvino":
            raise BadArtifact(f"{artifact.name} on openvino is off")
        return real(session, artifact)

    real = sessions.check_parity
    monkeypatch.setattr(sessions, "check_parity", check_parity)
    async with opened(artifacts, "tiny-vit", provider="auto") as repository:
        assert repository.get("tiny-vit").provider == "cpu"
    assert "tiny-vit on openvino is off; running on cpu instead" in caplog.text
    with pytest.raises(BadArtifact, match="tiny-vit on openvino is off"):
        async with opened(artifacts, "tiny-vit", provider="openvino"):
            pass


@pytest.mark.usefixtures("openvino_or_stand_in")
async def test_a_model_that_cannot_be_warmed_up_runs_on_the_next_provider_unless_one_was_named(
    artifacts, caplog, monkeypatch
):
    def fails(session, *_, **__):
        if session.provider == "openvino":
            raise runtime.Fail("no kernel for that\nand much more")
        return WarmUp(0, 0, 0.0)

    monkeypatch.setattr(build, "warm_up", fails)
    async with opened(artifacts, "tiny-vit", provider="auto") as repository:
        assert repository.get("tiny-vit").provider == "cpu"
    assert "tiny-vit/1: does not run on openvino: no kernel for that; running on cpu instead" in caplog.text
    with pytest.raises(BadArtifact, match="does not run on openvino: no kernel for that$"):
        async with opened(artifacts, "tiny-vit", provider="openvino"):
            pass


@pytest.mark.usefixtures("openvino_or_stand_in")
async def test_on_openvino_lengths_have_steps_that_are_warmed_up_before_the_model_is_ready(artifacts, caplog):
    caplog.set_level(logging.INFO, "server")
    async with opened(artifacts, "tiny-embedder", provider="openvino") as repository:
        task = repository.get("tiny-embedder").task
        texts = ["a list " * count for count in range(1, 12)]
        vectors = (await task(texts, context=CONTEXT)).vectors
    assert "tiny-embedder: 4 of 4 shapes warmed up in " in caplog.text  # 8, 16, 24 and 32 tokens
    async with opened(artifacts, "tiny-embedder", provider="cpu") as repository:
        expected = (await repository.get("tiny-embedder").task(texts, context=CONTEXT)).vectors
    np.testing.assert_allclose(vectors, expected, atol=0.02)  # bf16, where that is fast
