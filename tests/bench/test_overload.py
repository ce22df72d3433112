"""`python -m tests.bench.overload` works, with tiny models."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.serving import ROOT


@pytest.mark.large  # it overloads the machine that runs it
def test_every_load_has_a_row_and_no_call_fails_unexpectedly(tiny_checkpoints, tmp_path):
    from export.__main__ import main  # imports torch

    shutil.copytree(tiny_checkpoints["tiny-bert"], tmp_path / "checkpoints" / "bert-base")
    command = [str(tmp_path / "checkpoints" / "bert-base"), "--artifacts", str(tmp_path / "artifacts")]
    assert main([*command, "--target", "cpu=fp32"]) == 0
    command = [sys.executable, "-m", "tests.bench.overload", "--sizes", "tiny", "--folder", str(tmp_path)]
    command += ["--tasks", "fill-mask", "--multiples", "0.5", "3", "--seconds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^\| (fill-mask, .*?) \| ", done.stdout.partition("\n\n")[2], re.MULTILINE)
    assert rows == [f"fill-mask, {name}, {load} ×" for load in ("0.5", "3") for name in ("deadlines", "no deadline")]
    table = done.stdout.partition("\n\n")[2]
    assert all(row.split("|")[7].strip() == "0" for row in table.splitlines() if row.startswith("| fill-mask"))
