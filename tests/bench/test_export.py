"""The table of exports, with tiny models."""

import json
from pathlib import Path

import pytest

from tests.bench.export import main


@pytest.mark.large
def test_a_model_has_a_line_with_nodes_sizes_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = "cuda=fp16,cpu=int8-weights"
    main(["--sizes", "tiny", "--models", "mixer-base", "--target", targets, "--json", str(tmp_path / "found.json")])
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("| mixer-base |")]
    nodes, sizes, errors, choices = line.split(" | ")[1:5]
    assert nodes == "42 → 30"
    assert [len(cell.split(", ")) for cell in (sizes, errors, choices)] == [2, 2, 2]
    (found,) = json.loads((tmp_path / "found.json").read_text())["exports"]
    assert 100e6 < found["peak_bytes"] < 2e9
    assert found["seconds"] > 0
