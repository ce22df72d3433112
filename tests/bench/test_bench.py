"""`python -m tests.bench` runs every benchmark and ends with the table of targets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import goals
from tests.serving import ROOT


def test_results_of_a_benchmark_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess:
        found = [{"workload": "w", "side": "s", "rates": [1.0, 3.0, 2.0], "note": "", "padding": None}]
        Path(command[-1]).write_text(json.dumps({"results": found}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)
    (result,) = bench.measured("encoders", [], tmp_path)
    assert (result.workload, result.side, result.rate) == ("w", "s", 2.0)


def test_a_benchmark_that_fails_is_named_and_the_others_count(tmp_path, monkeypatch, capsys) -> None:
    answers = {"encoders": None, "generation": [bench.Result(goals.CALLS, goals.ECHO, note="skipped: no reason")]}
    monkeypatch.setattr(bench, "measured", lambda module, arguments, folder: answers.get(module, []))
    assert bench.main(["--output", str(tmp_path / "found.json")]) == 1
    said = capsys.readouterr().out
    assert "error: failed: encoders" in said
    assert "bare grpc.aio: skipped: no reason" in said
    assert len(json.loads((tmp_path / "found.json").read_text())["results"]) == 1


@pytest.mark.large
@pytest.mark.timeout(1800)
def test_the_whole_command_ends_with_the_table(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--sizes", "tiny", "--output", tmp_path / "found.json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.rpartition("| work |")[2]
    assert all(goal.work in last for goal in goals.GOALS)
    encoders_and_generation = [goal for goal in goals.GOALS if goal.workload != goals.CALLS]
    assert last.count(" × |") >= len(encoders_and_generation)
