"""The large images, built and run: the server with CUDA, on a machine without a GPU, and the exporter.

`make docker-test-large` runs these tests. PYTHON_IMAGE names another base, as for the Dockerfile.
"""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from server.client import Client
from tests.docker.engine import ROOT, Engine
from tests.docker.running import Exported, Server

pytestmark = [pytest.mark.docker_large, pytest.mark.timeout(3600)]

USER = 10001
EXPORT_S = 900.0
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def built(engine: Engine, facts: list[str]) -> Callable[[str], str]:
    """Target → the tag of its image."""

    def build(target: str) -> str:
        tag, started = f"affinity-test:{target.removeprefix('server-')}", time.monotonic()
        engine.build(target, tag, os.environ.get("PYTHON_IMAGE"))
        size = engine.run(tag, "du -sxm / | cut -f1", user="root").stdout.strip()
        facts.append(f"{target}: {size} MB unpacked, built with {engine.name} in {time.monotonic() - started:.0f} s")
        return tag

    return build


@pytest.fixture(scope="module")
def cuda(built: Callable[[str], str]) -> str:
    return built("server-cuda")


@pytest.fixture(scope="module")
def exporter(built: Callable[[str], str]) -> str:
    return built("export")


# ---- the server with CUDA


def test_it_contains_cuda_and_no_installer_compiler_or_training_code(engine: Engine, cuda: str) -> None:
    assert engine.image(cuda).user == f"{USER}:{USER}"
    assert engine.run(cuda, "id -u; id -g").stdout.split() == [str(USER)] * 2
    assert engine.run(cuda, "for tool in pip pip3 gcc cc g++ nvcc ld make; do command -v $tool; done").stdout == ""
    script = "import importlib.util, sys; print(*filter(importlib.util.find_spec, sys.argv[1:]))"
    assert engine.run(cuda, f"python -c '{script}' pip setuptools torch onnx models export").stdout.split() == []
    libraries = engine.run(cuda, "find /venv -name 'lib*.so*' -printf '%f\\n'").stdout.split()
    for wanted in ("libonnxruntime_providers_cuda.so", "libcublas.so", "libcudnn.so", "libcudart.so", "libcufft.so"):
        assert any(library.startswith(wanted) for library in libraries), wanted


def test_without_a_gpu_it_exits_and_names_the_missing_library(
    engine: Engine, cuda: str, exported: Exported, facts: list[str]
) -> None:
    with engine.start(cuda, exported.artifacts) as container:
        code = container.wait()
        log = container.log()
    assert code == 1, log
    assert "libcuda.so.1" in log
    facts.append("without a GPU: " + next(line for line in log.splitlines() if "libcuda.so.1" in line))


def test_with_provider_auto_it_logs_why_cuda_is_missing_and_serves_on_the_cpu(
    engine: Engine, cuda: str, exported: Exported, facts: list[str]
) -> None:
    with engine.start(cuda, exported.artifacts, "--provider", "auto") as container:
        server = Server(container, engine.image(cuda))
        server.wait_until_ready()
        with Client(server.grpc) as client:
            [text] = client.fill_mask(["The [MASK] statement raises an exception."])
            providers = {model.provider for model in client.models()}
        container.terminate()
        assert container.wait() == 0
        log = container.log()
    assert text.masks[0].candidates
    assert providers == {"cpu"}
    assert "running on cpu: " in log
    assert "libcuda.so.1" in log
    facts.append("with --provider auto: " + next(line for line in log.splitlines() if "running on cpu" in line))


# ---- the export


def test_it_exports_the_models_of_compose_as_an_unprivileged_user(
    engine: Engine, exporter: str, tmp_path: Path, facts: list[str]
) -> None:
    tmp_path.chmod(0o755)
    volume = tmp_path / "artifacts"
    volume.mkdir()
    if os.geteuid() == 0:
        os.chown(volume, USER, USER)
    models, started = COMPOSE["services"]["export"]["command"], time.monotonic()
    with engine.start(exporter, volume, *models, writable=True) as container:
        assert container.wait(EXPORT_S) == 0, container.log()
    facts.append(f"export of {', '.join(models)} in {time.monotonic() - started:.0f} s")
    manifests = sorted(volume.glob("*/1/manifest.json"))
    assert [path.parent.parent.name for path in manifests] == sorted(models)
    assert owners(volume.rglob("*")) == {(USER, USER)}


def owners(paths: Iterable[Path]) -> set[tuple[int, int]]:
    return {(path.stat().st_uid, path.stat().st_gid) for path in paths}
