"""`python -m tests.bench.embeddings` works, with a few small vectors."""

import re

import pytest

from tests.bench.embeddings import main


def test_both_encodings_are_measured_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--texts", "20", "--width", "32", "--rounds", "2"])
    output = capsys.readouterr().out
    for workload in ("into arrays", "into lists"):
        assert {f"| {workload} | float |", f"| {workload} | bytes |"} <= {
            " ".join(line.split()[:6]) for line in output.splitlines()
        }
        assert re.search(rf"^{workload}: bytes are [\d.]+ times as fast as floats$", output, re.MULTILINE)
