"""A rehearsal of the tables of exports."""

import json
from pathlib import Path

import pytest

from tests.bench.export import main


def test_each_graph_has_a_line_with_nodes_size_and_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = "cuda=fp16,cpu=int8-weights"
    main(["--sizes", "tiny", "--models", "mixer-base", "--target", targets, "--json", str(tmp_path / "found.json")])
    said = capsys.readouterr().out
    for graph in ("cuda fp16", "cpu int8-weights"):
        assert said.count(f"| mixer-base | {graph} |") == 1
    (found,) = json.loads((tmp_path / "found.json").read_text())["exports"]
    assert 100e6 < found["peak_bytes"] < 2e9
    assert found["seconds"] > 0
