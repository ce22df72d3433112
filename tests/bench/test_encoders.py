"""`python -m tests.bench.encoders` works, with tiny models: every side runs, or is skipped by name."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import encoders, goals
from tests.bench.processes import FOLDERS, HOW_TO_MAKE, PEERS, TRITON
from tests.published import TINY
from tests.serving import ROOT

SIDES = {
    encoders.FILL_MASK: (encoders.FP32, encoders.BF16, encoders.RUNTIME, encoders.OPENVINO),
    encoders.VISION: (encoders.FP32, encoders.BF16, encoders.RUNTIME, encoders.OPENVINO),
    encoders.LENGTHS: (encoders.FP32, encoders.OPENVINO, encoders.FIRST_COME, encoders.TRITON_CORE),
}
NEEDS = {encoders.OPENVINO: PEERS, encoders.TRITON_CORE: TRITON}
QUICKLY_OPENED = (encoders.FP32, encoders.FIRST_COME, encoders.TRITON_CORE, encoders.WITHOUT_GRPC)
EXACT = (encoders.RUNTIME, "ours, cpu fp32")


@pytest.fixture(scope="module")
def folder(tiny_checkpoints, traced_once, tmp_path_factory) -> Path:
    """A tiny model with the name of the large one, already exported."""
    from export.__main__ import main  # imports torch

    folder, name = tmp_path_factory.mktemp("bench"), "bert-base"
    shutil.copytree(tiny_checkpoints[f"tiny-{TINY[name]}"], folder / "checkpoints" / name)
    for precision, artifacts in encoders.ARTIFACTS.items():
        command = [str(folder / "checkpoints" / name), "--artifacts", str(folder / artifacts)]
        assert main([*command, "--target", f"cpu={precision}"]) == 0
    return folder


def rehearsed(folder: Path, *flags: str) -> tuple[str, list[dict]]:
    """The output and the results of one round with tiny models."""
    output = folder / "rates.json"
    command = [sys.executable, "-m", "tests.bench.encoders", "--sizes", "tiny", "--folder", folder]
    command += ["--rounds", "1", "--output", output]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(output.read_text())["results"]


def assert_took_part(results: list[dict], sides: set[tuple[str, str]]) -> None:
    """Every (workload, side) was measured, or skipped because of a missing environment."""
    found = {(result["workload"], result["side"]): result for result in results}
    assert sides <= found.keys()
    for (_, side), result in found.items():
        if side not in NEEDS or (FOLDERS[NEEDS[side]] / "bin" / "python").exists():
            assert result["rates"][0] > 0, result
        else:
            assert HOW_TO_MAKE in result["note"]


def test_ours_and_peers_are_measured_and_agree(folder) -> None:
    texts = (encoders.FILL_MASK, encoders.LENGTHS)
    said, results = rehearsed(folder, "--workloads", *texts, "--peers", *QUICKLY_OPENED)
    ours = {(workload, "ours, cpu fp32") for workload in texts}
    peers = {(workload, side) for workload in texts for side in SIDES[workload] if side in QUICKLY_OPENED}
    assert_took_part(results, ours | peers)
    notes = [result["note"] for result in results if result["side"] == "ours, cpu fp32"]
    assert notes[0].endswith(f"ms of CPU each; 100% the same answer as {encoders.FP32}")
    assert "% padding" in said
    assert {r["workload"] for r in results if r["side"].startswith(goals.ENGINE) and r["rates"]} == set(texts)
    judged = [line for line in said.splitlines() if "reached |" in line or "missed |" in line or "measured |" in line]
    batching = 2 * len(encoders.batching_targets(""))  # in fp32, and with weights in 8 bits
    assert len(judged) == batching + sum(goal.workload in texts for goal in goals.GOALS)
    assert re.search(
        rf"^\| {encoders.LENGTHS} \| padding of ours, .+ \| \d+\.\d% \| ≤ 15% \| (reached|missed) \|$", said, re.M
    )


@pytest.mark.large
@pytest.mark.timeout(1200)
def test_every_peer_is_measured_and_agrees(tmp_path: Path) -> None:
    _, results = rehearsed(tmp_path)
    assert_took_part(results, {(workload, side) for workload, sides in SIDES.items() for side in sides})
    exact = [r["note"] for r in results if r["side"] in EXACT and r["workload"] != encoders.LENGTHS]
    assert all(note.endswith(f"100% the same answer as {encoders.FP32}") for note in exact)
