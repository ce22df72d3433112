"""A real Prometheus for tests, which scrapes real servers."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.serving import own_address

PATIENCE_S = 60.0

T = TypeVar("T")

needs_prometheus = pytest.mark.skipif(
    not shutil.which("prometheus"), reason="Prometheus is not installed (.ci/prometheus unpacks that of Debian)"
)


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus in a process of its own."""

    address: str

    def get(self, path: str, **parameters: str) -> Any:
        """The data of a call of its HTTP API. Raises urllib.error.HTTPError, with Prometheus's reason as its text."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{path}?{query}", timeout=PATIENCE_S) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[float]:
        """The value of each element of the answer."""
        return [float(element["value"][1]) for element in self.get("query", query=expression)["result"]]


@contextmanager
def prometheus(config: Mapping[str, Any], directory: Path, *, port: int = 9090) -> Iterator[Prometheus]:
    """Run a Prometheus with this configuration. Its data and the file of the configuration are in the directory."""
    address = f"{own_address()}:{port}"
    file = directory / "prometheus.json"
    file.write_text(json.dumps(config))  # JSON is YAML
    command = ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"]
    log = directory / "prometheus.log"
    with log.open("w") as output:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=output, stderr=output)
    try:
        eventually(lambda: is_ready(address) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/-/ready", timeout=PATIENCE_S):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


def eventually(condition: Callable[[], T]) -> T:
    """Wait for a state that the processes reach by themselves. Returns the first true result of the condition."""
    deadline = time.monotonic() + PATIENCE_S
    while not (reached := condition()):
        assert time.monotonic() < deadline, f"found {reached!r} for {PATIENCE_S:g} s"
        time.sleep(0.1)
    return reached


def scrape(jobs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A configuration with these jobs, which scrape every second."""
    return {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": list(jobs)}
