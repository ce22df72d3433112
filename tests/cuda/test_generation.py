"""Generation on CUDA without a device: its session, its memory, and the binding of its steps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving import ROOT


@pytest.fixture(scope="module")
def shown(stand_ins: Path, exported: Callable[[str], Path]) -> dict:
    environment = os.environ | {"LD_LIBRARY_PATH": str(stand_ins)}
    command = [sys.executable, "-m", "tests.cuda.generation", str(exported("tiny-gpt"))]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_session_can_capture_graphs(shown: dict) -> None:
    assert shown["options"]["enable_cuda_graph"] == "1"


def test_the_cache_and_the_runtime_together_stay_within_the_limit(shown: dict) -> None:
    assert shown["arena_limit"] + shown["cache_limit"] == 64 << 20
    assert shown["arena_limit"] > shown["graph_bytes"] + (10 << 20)
    assert shown["cache_limit"] > 40 << 20


def test_memory_keeps_its_contents_when_it_grows_and_copies_parts_of_rows(shown: dict) -> None:
    first = [*range(1, 17), *[0] * 16]
    second = [1, 2, 3, 0, 0, 0, 0, 0, 9, 10, 11, 0, 0, 0, 0, 0]
    assert shown["moved"] == [*first, *second, *[0] * 80]


def test_the_error_for_a_cache_beyond_its_limit_says_how_many_slots_would_fit(shown: dict) -> None:
    assert "found 8 slots of 64 tokens" in shown["refused"]
    assert "expected at most 5" in shown["refused"]


def test_each_batch_size_has_its_own_graph_and_a_new_one_after_growth(shown: dict) -> None:
    graphs = [int(graph) for graph in shown["graphs"]]
    assert len(set(graphs)) == 4
    assert min(graphs) > 0  # 0 and -1 have special meanings


def test_a_graph_with_nodes_on_the_cpu_is_refused_and_they_are_named(shown: dict) -> None:
    assert "GroupQueryAttention" in shown["placement"]
    assert "on cpu" in shown["placement"]
    assert shown["placement"].endswith("expected all on cuda")
