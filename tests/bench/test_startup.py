"""`python -m tests.bench.startup` works, with a tiny model."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.startup import Start, main, row


def test_every_folder_of_artifacts_has_a_row(
    exported: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.copytree(exported("tiny-vit"), tmp_path / "some" / "tiny-vit" / "1")
    main(["--artifacts", str(tmp_path / "some"), "--rounds", "1"])
    found = re.findall(
        r"^\| (\S+) \| ([\d.]+) s \| ([\d.]+) s \| ([\d,]+) MiB \|$", capsys.readouterr().out, re.MULTILINE
    )
    assert [name for name, *_ in found] == ["some"]
    assert all(float(figure.replace(",", "")) > 0 for figure in found[0][1:])


def test_a_row_has_medians() -> None:
    starts = [Start(1, 0.5, 100), Start(3, 0.7, 300), Start(2, 0.6, 1200)]
    assert row("x", starts) == "| x | 2.00 s | 0.60 s | 300 MiB |"
