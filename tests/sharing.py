"""Directories that are made once in a test run, and shared by all workers of pytest-xdist."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

DONE_SUFFIX = ".done"


def shared_directory(factory: pytest.TempPathFactory, name: str) -> Path:
    """A directory that all workers of a run share."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    root.mkdir(exist_ok=True)
    return root


def make_once(root: Path, name: str, make: Callable[[], None]) -> None:
    """Call `make` once for this name: if another worker is calling it, wait until it has finished."""
    done = root / f".{name}{DONE_SUFFIX}"
    with FileLock(root / f".{name}.lock"):
        if not done.exists():
            make()
            done.touch()
