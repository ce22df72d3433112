"""Every graph for CUDA runs on CUDA whole: no node elsewhere, no copies between devices, fit for CUDA graphs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cuda import stub_libraries

ROOT = Path(__file__).resolve().parent.parent.parent
FAMILIES = ("tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-gpt", "tiny-vit", "tiny-mixer")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict]:
    """Where ONNX Runtime places the nodes of a graph, on a machine that has CUDA as far as it can tell."""
    if reason := stub_libraries.missing():
        pytest.skip(f"no stand-ins for the CUDA libraries: {reason}")
    folder = tmp_path_factory.mktemp("cuda")
    stub_libraries.build(folder)

    def run(graph: Path) -> dict:
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
        command = [sys.executable, "-m", "tests.cuda.place", str(graph)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def cuda_artifacts(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs for CUDA, and one for the CPU as a counterexample."""
    root = tmp_path_factory.mktemp("cuda-artifacts")
    command = [sys.executable, "-m", "export", *(checkpoints[name] for name in FAMILIES), "--artifacts", root]
    done = subprocess.run([*command, "--target", "cpu,cuda"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.parametrize("name", FAMILIES)
def test_a_graph_for_cuda_runs_there_whole(name: str, place: Callable, cuda_artifacts: Path) -> None:
    placed = place(cuda_artifacts / name / "1" / "cuda.onnx")
    assert (placed["elsewhere"], placed["copies"], placed["cuda_graph_refused"]) == ([], 0, "")


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit"])
def test_attention_is_one_node_a_layer_still(name: str, place: Callable, cuda_artifacts: Path) -> None:
    nodes = place(cuda_artifacts / name / "1" / "cuda.onnx")["nodes"]
    assert nodes["MultiHeadAttention"] == 2
    assert "Softmax" not in nodes


def test_a_graph_that_cannot_run_there_whole_is_found_out(place: Callable, cuda_artifacts: Path) -> None:
    """The check itself: fp32 GroupQueryAttention has no kernel on CUDA, and goes to the CPU in silence."""
    placed = place(cuda_artifacts / "tiny-gpt" / "1" / "cpu.onnx")
    assert "GroupQueryAttention on CPUExecutionProvider" in placed["elsewhere"]
    assert placed["copies"] > 0
    assert placed["cuda_graph_refused"]
