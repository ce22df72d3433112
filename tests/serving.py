"""Start a real server in a process of its own, for tests and benchmarks."""

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
READY = re.compile(r"gRPC on \S+:(\d+), metrics and health on https?://\S+:(\d+)")


def own_address() -> str:
    """A loopback address of this process alone: no other process takes its ports."""
    process = os.getpid()
    return f"127.{100 + (process >> 16) % 100}.{(process >> 8) % 256}.{process % 256}"


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen
    artifacts: Path
    port: int
    http_port: int
    banner: str  # its output up to and including the example commands

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"


@contextmanager
def served(artifacts: Path, *flags: str, environment: Mapping[str, str] = os.environ):
    """Run `python -m server` with the artifacts on free ports, and wait until it is ready."""
    command = [sys.executable, "-m", "server", "--artifacts", artifacts, "--provider", "cpu"]
    command += ["--port", "0", "--http-port", "0", "--threads", "1", "--tune", "off", *flags]
    environment = {**environment, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output = ""
        while not (ready := READY.search(output)):
            line = process.stdout.readline()
            assert line, f"the server exited before it was ready:\n{output}"
            output += line
        banner = output + "".join(iter_banner(process))
        yield Served(process, artifacts, int(ready[1]), int(ready[2]), banner)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def iter_banner(process):
    """The example commands that the server prints when it is ready."""
    while (line := process.stdout.readline()).strip():
        yield line
