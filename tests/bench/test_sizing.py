"""`python -m tests.bench.sizing` works, with tiny models of every task."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.sizing import main

MODELS = ("tiny-bert", "tiny-classifier", "tiny-embedder", "tiny-gpt", "tiny-vit")


@pytest.mark.large
def test_every_model_has_a_row(exported: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    root = [exported(name) for name in MODELS][0].parents[1]
    load = ["--callers", "2", "--seconds", "0.2", "--sentences", "1", "--new-tokens", "4"]
    main(["--artifacts", str(root), "--models", *MODELS, *load])
    rows = re.findall(r"^\| (tiny-\S+) \| cpu \| (.+?) \| ([\d,.]+) \| ([\d,.]+) \| ([\d,]+) MiB \| ([\d.]+) s \|$",
                      capsys.readouterr().out, re.MULTILINE)  # fmt: skip
    assert [row[0] for row in rows] == list(MODELS)
    assert all(float(figure.replace(",", "")) > 0 for row in rows for figure in row[2:])
