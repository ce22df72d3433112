"""`python -m tests.bench.jpegs` works, with few pixels; torchvision is skipped by name where it is missing."""

import subprocess
import sys

import pytest

from tests.serving import ROOT


@pytest.mark.large
def test_ours_is_measured_beside_the_peers() -> None:
    command = [sys.executable, "-m", "tests.bench.jpegs", "--rounds", "1", "--files", "1", "--pixels", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    for side in ("ours", "ours, decoded in full", "transformers", "torchvision"):
        assert f"| 4032 × 3024 | {side} |" in done.stdout
    assert "| ours / transformers |" in done.stdout
