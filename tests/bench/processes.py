"""Peers in processes of their own, so that their threads and memory do not affect each other."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serving import ROOT

# The Python of each environment. `make bench-peers` creates those of the peers.
OURS, PEERS, TRITON, TORCHVISION = "ours", "peers", "triton", "torchvision"
FOLDERS = {name: ROOT / f".venv-{name}" for name in (PEERS, TRITON, TORCHVISION)}
HOW_TO_MAKE = "make bench-peers"


class Missing(Exception):
    """A peer cannot run here. The text gives the reason, and the command that helps if there is one."""


class Failed(RuntimeError):
    """A peer ended, or cannot run although its environment is ours. The text has its last output."""


def cpu_seconds(pid: int) -> float:
    """The CPU time of a process, its threads and its children so far (Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has just ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(c)) for c in children)


class Peer:
    """A peer that is ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.pid = process.pid
        self._process, self._log = process, log

    def ask(self, **request: Any) -> Any:
        """The peer's answer; Failed if it has died."""
        assert self._process.stdin
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise Failed(self.last_words()) from None
        return self.receive()["answer"]

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise Failed(self.last_words())
        return json.loads(line)

    def obstacle(self) -> str:
        """Wait until the peer is ready. Returns "", or the reason why it cannot run here."""
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            code = self._process.wait()
            return f"it ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
        message = json.loads(line)
        if "missing" in message:
            return f"{message['missing']} ({HOW_TO_MAKE})"
        return str(message.get("unable", ""))

    def last_words(self) -> str:
        return f"a peer ended before it answered:\n{self._log.read_text()[-2000:]}"


@contextmanager
def peer(environment: str, module: str, *arguments: str | Path) -> Iterator[Peer]:
    """Start `tests.bench.peers.MODULE` in an environment and wait until it is ready; Missing if it cannot run."""
    python = Path(sys.executable) if environment == OURS else FOLDERS[environment] / "bin" / "python"
    if not python.exists():
        raise Missing(f"no {python.parents[1].name} ({HOW_TO_MAKE})")
    with tempfile.NamedTemporaryFile("w+", suffix=".log") as log:
        process = subprocess.Popen(
            [python, "-m", f"tests.bench.peers.{module}", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            running = Peer(process, Path(log.name))
            if obstacle := running.obstacle():
                raise Failed(running.last_words()) if environment == OURS else Missing(obstacle)
            yield running
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()
