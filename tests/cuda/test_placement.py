"""Every graph for CUDA runs completely on CUDA, without copies between devices, and can be a CUDA graph."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.__main__ import main
from tests.sharing import make_once, shared_directory

ROOT = Path(__file__).resolve().parent.parent.parent
ENCODERS = ("tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-vit", "tiny-mixer")


@pytest.fixture(scope="session")
def place(stand_ins: Path) -> Callable[[Path], dict]:
    """Where ONNX Runtime places the nodes of a graph."""

    def run(graph: Path) -> dict:
        environment = os.environ | {"LD_LIBRARY_PATH": str(stand_ins)}
        command = [sys.executable, "-m", "tests.cuda.place", str(graph)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def in_fp32(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the artifacts of all encoders for CUDA in fp32."""
    root = shared_directory(tmp_path_factory, "cuda-fp32")
    sources = [str(tiny_checkpoints[name]) for name in ENCODERS]

    def export() -> None:
        assert main([*sources, "--artifacts", str(root), "--target", "cuda=fp32"]) == 0

    make_once(root, "all", export)
    return root


@pytest.mark.parametrize("name", [*ENCODERS, "tiny-gpt"])
def test_a_graph_for_cuda_runs_completely_on_cuda(name: str, place: Callable, exported: Callable[[str], Path]) -> None:
    placed = place(exported(name) / "cuda.onnx")
    assert (placed["elsewhere"], placed["copies"], placed["cuda_graph_refused"]) == ([], 0, "")


@pytest.mark.parametrize("name", ENCODERS)
def test_so_does_an_encoder_in_fp32(name: str, place: Callable, in_fp32: Path) -> None:
    placed = place(in_fp32 / name / "1/cuda.onnx")
    assert (placed["elsewhere"], placed["copies"], placed["cuda_graph_refused"]) == ([], 0, "")


@pytest.mark.parametrize("name", ["roberta", "distilbert-classifier", "layered-embedder", "deit-with-teacher"])
def test_the_graph_of_a_variant_runs_completely_on_cuda(
    name: str, place: Callable, exported_variant: Callable[[str], Path]
) -> None:
    placed = place(exported_variant(name) / "cuda.onnx")
    assert (placed["elsewhere"], placed["copies"], placed["cuda_graph_refused"]) == ([], 0, "")


def test_a_graph_that_cannot_run_completely_on_cuda_is_detected(
    place: Callable, exported: Callable[[str], Path]
) -> None:
    """A test of the check: GroupQueryAttention in fp32 has no kernel on CUDA, and is placed on the CPU silently."""
    placed = place(exported("tiny-gpt") / "cpu.onnx")
    assert "GroupQueryAttention on CPUExecutionProvider" in placed["elsewhere"]
    assert placed["copies"] > 0
    assert placed["cuda_graph_refused"]
