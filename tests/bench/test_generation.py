"""`python -m tests.bench.generation` works, with a tiny model and the peer that is always installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving import ROOT


@pytest.fixture
def folder(tiny_checkpoints: dict[str, Path], traced_once: None, tmp_path: Path) -> Path:
    """A tiny model with the name of the large one, already exported."""
    from tests.bench import generation  # imports torch

    shutil.copytree(tiny_checkpoints["tiny-gpt"], tmp_path / "gpt2")
    generation.export(tmp_path / "gpt2", tmp_path / "artifacts")
    return tmp_path


def test_the_rehearsal_measures_all_that_is_there_and_finds_the_continuations_of_transformers(folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.bench.generation",
        "--sizes",
        "tiny",
        "--rounds",
        "1",
        "--peers",
        "transformers fp32",
    ]
    command += ["--folder", str(folder), "--output", str(folder / "found.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "found.json").read_text())["results"]
    measured = {(result["workload"], result["side"]) for result in found if result["rates"]}
    precisions = ("fp32", "int8-weights", "int4-weights", "int4-weights+int8-kv")
    sides = {f"{ours}, {p}" for ours in ("ours", "engine alone") for p in precisions}
    sides |= {f"ours, {p}, 8 tokens a message" for p in precisions}
    for workload in ("one stream", "eight streams"):
        assert {(workload, side) for side in (*sides, "transformers fp32")} <= measured
    assert {("Poisson arrivals", side) for side in ("engine alone, fp32", "transformers fp32")} <= measured
    assert {"Poisson arrivals"} == {workload for workload, _ in measured} - {"one stream", "eight streams"}
    assert "8 of 8 continuations in fp32 are those of transformers" in done.stdout
