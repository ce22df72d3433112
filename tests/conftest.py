"""Session fixtures: tiny checkpoints with random weights, their artifacts, and a real server that serves them."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import hypothesis
import pytest

from tests.serving import ROOT, served
from tests.sharing import make_once, shared_directory

# A busy machine is not an error.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files near the root first: they take the longest, and no worker should begin one when the others are done."""
    items.sort(key=lambda item: len(item.path.parts))


def written(root: Path, writers: Mapping[str, Callable[[Path], None]]) -> dict[str, Path]:
    """Call every writer once. Returns name → directory."""

    def write() -> None:
        for name, writer in writers.items():
            (root / name).mkdir()
            writer(root / name)

    make_once(root, "all", write)
    return {name: root / name for name in writers}


def succeed(status: int) -> None:
    """Assert that a command succeeded."""
    assert status == 0


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Name → directory in the Hugging Face layout: tiny-bert, tiny-classifier, tiny-embedder, tiny-gpt, …"""
    from tests.checkpoints import WRITERS  # imports transformers, which takes seconds

    return written(shared_directory(tmp_path_factory, "checkpoints"), {f"tiny-{n}": w for n, w in WRITERS.items()})


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoints) -> dict[str, Path]:
    """The checkpoints by the names that a folder's tests use. Folders may override this."""
    return tiny_checkpoints


@pytest.fixture(scope="session")
def traced_once(tmp_path_factory) -> Iterator[None]:
    """Exports in this process trace a model that was traced before in this test run no more."""
    from export.artifact import graph_writer
    from tests.tracing import traced_once

    with pytest.MonkeyPatch.context() as patch:
        kept = shared_directory(tmp_path_factory, "traced")
        patch.setattr(graph_writer, "trace", traced_once(kept, graph_writer.trace))
        yield


@pytest.fixture(scope="session")
def exported(tiny_checkpoints, traced_once, tmp_path_factory) -> Callable[[str], Path]:
    """Name → the artifact, exported with the command line when a test first needs it."""
    from export.__main__ import main

    root = shared_directory(tmp_path_factory, "artifacts")

    def export(name: str) -> Path:
        make_once(root, name, lambda: succeed(main([str(tiny_checkpoints[name]), "--artifacts", str(root)])))
        return root / name / "1"

    return export


@pytest.fixture(scope="session")
def variant_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Name → directory of the variants: roberta, distilbert-classifier, deit, …"""
    from tests.variants import VARIANTS

    return written(shared_directory(tmp_path_factory, "variants"), VARIANTS)


@pytest.fixture(scope="session")
def exported_variant(variant_checkpoints, traced_once, tmp_path_factory) -> Callable[[str], Path]:
    """Name → the artifact of a variant. One variant of each architecture is exported for CUDA, too."""
    from export.__main__ import main

    root = shared_directory(tmp_path_factory, "variant-artifacts")
    on_cuda = ("roberta", "distilbert-classifier", "layered-embedder", "deit-with-teacher")

    def export(name: str) -> Path:
        targets = [] if name in on_cuda else ["--target", "cpu"]
        command = [str(variant_checkpoints[name]), "--artifacts", str(root), *targets]
        make_once(root, name, lambda: succeed(main(command)))
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
    root = shared_directory(tmp_path_factory, "bundled")
    names = sorted(path.name for path in (ROOT / "models" / "pretrained").iterdir())
    command = [sys.executable, "-m", "export", *names, "--artifacts", root]

    def export() -> None:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    make_once(root, "all", export)
    return root


@pytest.fixture(scope="session")
def bundled_running(bundled):
    """A server over the bundled models."""
    with served(bundled) as running:
        yield running


@pytest.fixture(scope="session")
def bundled_server(bundled_running) -> str:
    """The address of a server over the bundled models."""
    return bundled_running.target
