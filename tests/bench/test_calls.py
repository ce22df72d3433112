"""`python -m tests.bench.calls` works: each kind of call is measured on every side, or a side is skipped by name."""

import json
from pathlib import Path

import pytest

from tests.bench import calls
from tests.bench.processes import FOLDERS, HOW_TO_MAKE, TRITON


@pytest.mark.large
@pytest.mark.timeout(1200)
def test_each_call_is_measured_beside_a_bare_server(
    bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rates.json"
    quickly = ["--sizes", "tiny", "--folder", str(bundled)]
    calls.main([*quickly, "--rounds", "1", "--callers", "1", "16"])
    calls.main([*quickly, "--rounds", "2", "--peers", calls.ECHO, "--callers", "2", "--output", str(output)])
    said = capsys.readouterr().out
    for name in (calls.FILL_MASK, calls.INFER, calls.IMAGE):
        for callers in ("1 caller", "16 callers"):
            for side in (calls.AFFINITY, calls.ECHO, calls.ENGINE, calls.SESSION):
                assert f"| {name}, {callers} | {side} |" in said
    assert said.count("| ≥ 0.5 × |") == 2 * 2
    assert (FOLDERS[TRITON] / "bin" / "python").exists() or HOW_TO_MAKE in said
    results = json.loads(output.read_text())["results"]
    assert all(len(result["rates"]) == 2 and "ms of CPU a call" in result["note"] for result in results)
