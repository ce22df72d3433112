"""Fixtures of the image tests, and the summary that they print."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image as Picture

from export.sources import lookup
from tests.docker import engine as engines
from tests.docker.engine import ROOT, Engine
from tests.docker.running import Exported

BUNDLED = ("bert-mini", "gpt-mini", "vit-digits", "mixer-digits")

FACTS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FACTS] = []


@pytest.fixture(scope="session")
def facts(pytestconfig: pytest.Config) -> list[str]:
    """The lines of the summary."""
    return pytestconfig.stash[FACTS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[FACTS]:
        terminalreporter.section("images")
        for line in config.stash[FACTS]:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def engine() -> Engine:
    try:
        return engines.find()
    except engines.Unavailable as missing:
        pytest.exit(f"cannot build images here: {missing}", returncode=1)


@pytest.fixture(scope="session")
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Artifacts of the bundled models, or of tiny models if the bundled ones are missing."""
    if set(BUNDLED) <= set(lookup.bundled()):
        export(BUNDLED, ROOT / "artifacts")
        return Exported(ROOT / "artifacts", lookup.bundled_directory() / "vit-digits" / "example.png", tokens=200)
    directory = tmp_path_factory.mktemp("image")
    directory.chmod(0o755)  # readable by the image's user
    export(request.getfixturevalue("checkpoints").values(), directory / "artifacts")
    Picture.new("L", (28, 28)).save(directory / "black.png")
    return Exported(directory / "artifacts", directory / "black.png", tokens=50)


def export(models: Iterable[str | Path], directory: Path) -> None:
    subprocess.run([sys.executable, "-m", "export", *models, "--artifacts", directory], cwd=ROOT, check=True)
