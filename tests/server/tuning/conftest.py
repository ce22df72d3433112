"""Models with two graphs for the CPU, and measurements that are made up."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from server.tuning import comparison, tuner
from server.tuning.search import Measurement
from tests.artifacts import change_manifest, replace_file

NAMES = ("tiny-embedder", "tiny-gpt")
SECOND = "cpu.int8-weights.onnx"


def add_graph(fields):
    """Add a second graph for the CPU to a manifest."""
    first = fields["graphs"][0]
    parity = first["parity"] | {"measure": "root-mean-square", "tolerance": 0.1}
    fields["graphs"].append(first | {"file": SECOND, "precision": "int8-weights", "parity": parity})


@pytest.fixture
def root(exported, tmp_path, monkeypatch):
    """Artifacts with two graphs each, of which the second is a copy of the first, and an empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    for name in NAMES:
        directory = shutil.copytree(exported(name), tmp_path / "artifacts" / name / "1")
        replace_file(directory, SECOND, (directory / "cpu.onnx").read_bytes())
        change_manifest(directory, add_graph)
    return tmp_path / "artifacts"


@dataclass
class Stopwatch:
    """Stands in for the measurement of two choices: challengers are `speedup` times as fast."""

    speedup: float = 1.0
    before: Callable[..., object] = lambda **_: None  # called before a measurement
    compared: list[tuple[str, ...]] = field(default_factory=list)  # the workloads of each comparison

    def __call__(self, ours, theirs, *, limit, stop):
        for workload in (*ours, *theirs):
            workload.run()
        self.compared.append(tuple(workload.name for workload in theirs))
        self.before(limit=limit, stop=stop)
        stop.check()
        return [Measurement(each.name, ((self.speedup, 1.0),)) for each in theirs] if limit.left > 0 else []


@pytest.fixture
def stopwatch(monkeypatch):
    monkeypatch.setattr(tuner, "is_overloaded", lambda: False)
    watch = Stopwatch()
    monkeypatch.setattr(comparison, "compare", watch)
    return watch
