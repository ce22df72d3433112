"""A real server in a process of its own, for tests and for measurements."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
READY = re.compile(r"gRPC on \S+:(\d+), metrics and health on http://\S+:(\d+)")


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen
    artifacts: Path
    port: int
    http_port: int
    banner: str  # what it printed when it was ready

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"


@contextmanager
def served(artifacts: Path, *flags: str, environment: Mapping[str, str] = os.environ):
    """`python -m server` over the artifacts, ready, on any free ports."""
    command = [sys.executable, "-m", "server", "--artifacts", artifacts, "--provider", "cpu"]
    command += ["--port", "0", "--http-port", "0", "--threads", "1", *flags]
    environment = {**environment, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = ""
        while not (ready := READY.search(said)):
            line = process.stdout.readline()
            assert line, f"the server ended before it was ready:\n{said}"
            said += line
        banner = said + "".join(iter_banner(process))
        yield Served(process, artifacts, int(ready[1]), int(ready[2]), banner)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def iter_banner(process):
    """The lines to try, which come with the news that the server is ready."""
    while (line := process.stdout.readline()).strip():
        yield line
