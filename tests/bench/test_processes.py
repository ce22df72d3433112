"""A peer that cannot run is skipped with a reason, and the command that helps if there is one."""

import sys
from pathlib import Path

import pytest

from tests.bench import processes
from tests.bench.processes import OURS, PEERS, Failed, Missing, peer

OPENED = """
import os, signal, sys
from tests.bench.peers import answering

def open_peer():
    {opening}
    return lambda request: request["number"] + 1

answering.answer(open_peer)
"""
CHAINED = "raise ImportError('lazy wrapper') from RuntimeError('operator torchvision::nms does not exist')"
REASONS = {
    "raise ImportError('no module named openvino')": r"ImportError: no module named openvino \(make bench-peers\)",
    CHAINED: r"RuntimeError: operator torchvision::nms does not exist \(make bench-peers\)",
    "raise ValueError('this CPU has no AVX2')": "^ValueError: this CPU has no AVX2$",
    "os.kill(os.getpid(), signal.SIGILL)": "^it ended with SIGILL$",
    "sys.exit(3)": "^it ended with exit code 3$",
}


@pytest.fixture
def opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a peer with the given first step, in an environment that is not ours but has the same Python."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    monkeypatch.setitem(processes.FOLDERS, PEERS, tmp_path / ".venv")

    def make(step: str) -> str:
        module = tmp_path / "peer.py"
        module.write_text(OPENED.format(opening=step))
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{module}"\n')
        python.chmod(0o755)
        return "any"

    monkeypatch.setenv("PYTHONPATH", str(processes.ROOT))
    return make


@pytest.mark.parametrize("step", REASONS)
def test_a_peer_that_cannot_run_is_skipped_with_the_reason(opening, step: str) -> None:
    with pytest.raises(Missing, match=REASONS[step]), peer(PEERS, opening(step)):
        pass


def test_a_peer_that_can_run_answers(opening) -> None:
    with peer(PEERS, opening("pass")) as running:
        assert running.ask(number=1) == 2


def test_a_peer_without_its_environment_is_skipped_with_the_command_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(processes.FOLDERS, PEERS, tmp_path / ".venv-peers")
    with pytest.raises(Missing, match=r"^no .venv-peers \(make bench-peers\)$"), peer(PEERS, "any"):
        pass


def test_a_peer_of_our_own_environment_that_cannot_run_is_an_error() -> None:
    with pytest.raises(Failed, match="No module named"), peer(OURS, "no_such_peer"):
        pass
