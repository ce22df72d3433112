"""Tiny checkpoints with random weights, their artifacts, and a real server over them: made once, used by every test."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import ROOT, served


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Name → directory in the Hugging Face layout: tiny-bert, tiny-classifier, tiny-embedder, tiny-gpt, …"""
    from tests.checkpoints import WRITERS  # imports transformers: only for those who need it

    root = tmp_path_factory.mktemp("checkpoints")
    directories = {f"tiny-{name}": root / f"tiny-{name}" for name in WRITERS}
    for write, directory in zip(WRITERS.values(), directories.values(), strict=True):
        directory.mkdir()
        write(directory)
    return directories


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoints) -> dict[str, Path]:
    """What the tests of a folder call them; here, as they are."""
    return tiny_checkpoints


@pytest.fixture(scope="session")
def exported(tiny_checkpoints, tmp_path_factory) -> Callable[[str], Path]:
    """Name → the artifact, exported by the command a user types when a test first asks for it."""
    from export.__main__ import main

    root = tmp_path_factory.mktemp("artifacts")

    def export(name: str) -> Path:
        if not (root / name).exists():
            assert main([str(tiny_checkpoints[name]), "--artifacts", str(root)]) == 0
        return root / name / "1"

    return export


@pytest.fixture(scope="session")
def variant_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Name → directory of the relatives: roberta, distilbert-classifier, deit, …"""
    from tests.variants import VARIANTS

    root = tmp_path_factory.mktemp("variants")
    for name, write in VARIANTS.items():
        (root / name).mkdir()
        write(root / name)
    return {name: root / name for name in VARIANTS}


@pytest.fixture(scope="session")
def exported_variant(variant_checkpoints, tmp_path_factory) -> Callable[[str], Path]:
    """Name → the artifact, in a directory that holds no others; one of each architecture for CUDA too."""
    from export.__main__ import main

    root = tmp_path_factory.mktemp("variant-artifacts")
    on_cuda = ("roberta", "distilbert-classifier", "layered-embedder", "deit-with-teacher")

    def export(name: str) -> Path:
        if not (root / name).exists():
            targets = [] if name in on_cuda else ["--target", "cpu"]
            assert main([str(variant_checkpoints[name]), "--artifacts", str(root), *targets]) == 0
        return root / name / "1"

    return export


@pytest.fixture(scope="session")
def artifacts(tiny_checkpoints, exported) -> Path:
    """The directory with the artifacts of all checkpoints."""
    return [exported(name) for name in tiny_checkpoints][0].parents[1]


@pytest.fixture(scope="session")
def server(artifacts):
    """One server for all tests that do not stop it."""
    with served(artifacts) as running:
        yield running


@pytest.fixture(scope="session")
def bundled(tmp_path_factory) -> Path:
    """The artifacts of the bundled models, as `make serve` exports them."""
    root = tmp_path_factory.mktemp("bundled")
    names = sorted(path.name for path in (ROOT / "models" / "pretrained").iterdir())
    command = [sys.executable, "-m", "export", *names, "--artifacts", root]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="session")
def bundled_server(bundled):
    """The address of a server over the bundled models."""
    with served(bundled) as running:
        yield running.target
