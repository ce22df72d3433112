"""`python -m tests.gpu` works, tried on the CPU with tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.compiling import compiled
from tests.serving import ROOT


@pytest.mark.large
def test_the_rehearsal_serves_and_measures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu", "--provider", "cpu", "--sizes", "tiny", "--batches", "1", "2"]
    done = subprocess.run([*command, "--runs", "1", "--output", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {(row["model"], row["batch"]) for row in rows} == {
        (model, batch) for model in ("bert-base", "vit-base", "gpt2") for batch in (1, 2)
    }
    steps = [row["what"].split(" at ")[0] for row in rows if "decode step" in row["what"]]
    assert set(steps) == {
        "decode step",
        "floor of a decode step",
        "decode step of torch, compiled, static cache",
    }
    floors = {row["what"] for row in rows if row["what"].startswith("floor of its matrix products at")}
    assert len(floors) == 1
    assert {row["what"] for row in rows if row["model"] == "vit-base"} == {
        "graph alone, device 0",
        "graph alone, bound, device 0",
        "through gRPC, pixels",
        "through gRPC, JPEG files",
        "torch float32, compiled",
        *floors,
    }
    assert all(row["per_second"] > 0 for row in rows)
    shared = [row for row in rows if row["share"]]
    assert {(row["model"], row["what"].split()[0]) for row in shared} == {
        (model, what) for model in ("bert-base", "vit-base") for what in ("floor", "graph", "torch")
    }
    assert all(0 < row["share"] <= 1 for row in shared)
    assert (tmp_path / "table.md").read_text() in done.stdout


def test_a_model_that_torch_cannot_compile_runs_uncompiled_and_is_labelled_so() -> None:
    def breaks(values: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return values + 1

    how, model = compiled(breaks, "cpu", lambda model: model(torch.ones(1)))
    assert how.startswith("not compiled (Unsupported: ")
    assert model is breaks
