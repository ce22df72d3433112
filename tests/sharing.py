"""Directories that are made once a run and used by every worker of pytest-xdist."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

MADE = ".made"


def shared_directory(factory: pytest.TempPathFactory, name: str) -> Path:
    """The directory of that name which all workers of a run have in common."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    root.mkdir(exist_ok=True)
    return root


def make_once(root: Path, name: str, make: Callable[[], None]) -> None:
    """Call `make` unless another worker has done so for this name, or is doing so: then wait for it."""
    made = root / f".{name}{MADE}"
    with FileLock(root / f".{name}.lock"):
        if not made.exists():
            make()
            made.touch()
