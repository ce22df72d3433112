"""Every graph for CUDA runs on CUDA whole: no node elsewhere, no copies between devices, fit for CUDA graphs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ("tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-gpt", "tiny-vit", "tiny-mixer")


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


GRAPHS = [(name, "cuda.onnx") for name in MODELS]
# In fp32 the graphs for both kinds of machine are the same, byte for byte: cpu.onnx is what cuda=fp32 makes.
GRAPHS += [(name, "cpu.onnx") for name in MODELS if name != "tiny-gpt"]


@pytest.mark.parametrize(("name", "file"), GRAPHS)
def test_a_graph_for_cuda_runs_there_whole(
    name: str, file: str, place: Callable, exported: Callable[[str], Path]
) -> None:
    placed = place(exported(name) / file)
    assert (placed["elsewhere"], placed["copies"], placed["cuda_graph_refused"]) == ([], 0, "")


@pytest.mark.parametrize("name", ["roberta", "distilbert-classifier", "layered-embedder", "deit-with-teacher"])
def test_a_relatives_graph_runs_there_whole_too(
    name: str, place: Callable, exported_variant: Callable[[str], Path]
) -> None:
    placed = place(exported_variant(name) / "cuda.onnx")
    assert (placed["elsewhere"], placed["copies"], placed["cuda_graph_refused"]) == ([], 0, "")


def test_a_graph_that_cannot_run_there_whole_is_found_out(place: Callable, exported: Callable[[str], Path]) -> None:
    """The check itself: fp32 GroupQueryAttention has no kernel on CUDA, and goes to the CPU in silence."""
    placed = place(exported("tiny-gpt") / "cpu.onnx")
    assert "GroupQueryAttention on CPUExecutionProvider" in placed["elsewhere"]
    assert placed["copies"] > 0
    assert placed["cuda_graph_refused"]
