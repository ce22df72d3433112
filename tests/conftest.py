"""Tiny checkpoints with random weights, their artifacts, and a real server over them: made once, used by every test."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READY = re.compile(r"gRPC on \S+:(\d+), metrics and health on http://\S+:(\d+)")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Name → directory in the Hugging Face layout: tiny-bert, tiny-classifier, tiny-embedder, tiny-gpt, …"""
    from tests.checkpoints import WRITERS  # imports transformers: only for those who need it

    root = tmp_path_factory.mktemp("checkpoints")
    directories = {f"tiny-{name}": root / f"tiny-{name}" for name in WRITERS}
    for write, directory in zip(WRITERS.values(), directories.values(), strict=True):
        directory.mkdir()
        write(directory)
    return directories


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoints) -> dict[str, Path]:
    """What the tests of a folder call them; here, as they are."""
    return tiny_checkpoints


@pytest.fixture(scope="session")
def exported(tiny_checkpoints, tmp_path_factory) -> Callable[[str], Path]:
    """Name → the artifact, exported by the command a user types when a test first asks for it."""
    from export.__main__ import main

    root = tmp_path_factory.mktemp("artifacts")

    def export(name: str) -> Path:
        if not (root / name).exists():
            targets = ["--target", "cpu"] if name == "tiny-classifier" else []  # one graph less: it saves seconds
            assert main([str(tiny_checkpoints[name]), "--artifacts", str(root), *targets]) == 0
        return root / name / "1"

    return export


@pytest.fixture(scope="session")
def artifacts(tiny_checkpoints, exported) -> Path:
    """The directory with the artifacts of all checkpoints."""
    return [exported(name) for name in tiny_checkpoints][0].parents[1]


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    process: subprocess.Popen
    port: int
    http_port: int
    banner: str  # what it printed when it was ready

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"


@contextmanager
def served(artifacts: Path, *flags: str):
    """`python -m server` over the artifacts, ready, on any free ports."""
    command = [sys.executable, "-m", "server", "--artifacts", artifacts, "--provider", "cpu"]
    command += ["--port", "0", "--http-port", "0", "--threads", "1", *flags]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
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
        yield Served(process, int(ready[1]), int(ready[2]), banner)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def iter_banner(process):
    """The lines to try, which come with the news that the server is ready."""
    while (line := process.stdout.readline()).strip():
        yield line


@pytest.fixture(scope="session")
def server(artifacts):
    """One server for all tests that do not stop it."""
    with served(artifacts) as running:
        yield running


@pytest.fixture(scope="session")
def bundled(tmp_path_factory) -> Path:
    """The artifacts of the bundled models, as `make serve` exports them."""
    root = tmp_path_factory.mktemp("bundled")
    names = sorted(path.name for path in (ROOT / "models" / "pretrained").iterdir())
    command = [sys.executable, "-m", "export", *names, "--artifacts", root]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="session")
def bundled_server(bundled):
    """The address of a server over the bundled models."""
    with served(bundled) as running:
        yield running.target
