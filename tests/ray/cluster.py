"""A Ray cluster of two nodes on this machine, and the REST interface of its dashboard, which `serve deploy` uses."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.serving import ROOT

BIN = ROOT / ".venv-ray" / "bin"
CONFIG = ROOT / "docker" / "ray" / "affinity.yaml"
MEMORY = 80_000_000  # bytes of the object store, which the server does not use
TIMEOUT_S = 180


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first value of the condition that is true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {TIMEOUT_S} s for {what}"
        time.sleep(0.2)
    return value


@dataclass(frozen=True)
class Cluster:
    """Two nodes, and the shipped configuration with the ports, the artifacts and the few CPUs of a test."""

    dashboard: str
    config: dict[str, Any]
    metrics_ports: tuple[int, ...]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.config['grpc_options']['port']}"

    def deployment(self, name: str) -> dict[str, Any]:
        """The configuration of a deployment, to be changed."""
        [application] = self.config["applications"]
        return next(each for each in application["deployments"] if each["name"] == name)

    def deploy(self) -> None:
        """Deploy the configuration, and wait until everything runs with it."""
        self.begin_deploy()
        wait_until(self.runs, "the deployment")

    def begin_deploy(self) -> None:
        body = json.dumps(self.config).encode()
        url = f"{self.dashboard}/api/serve/applications/"
        with urllib.request.urlopen(urllib.request.Request(url, body, method="PUT"), timeout=60):
            pass

    def failure(self, name: str) -> str:
        """Why the application could not be deployed: the message of a deployment. Empty while that is not known."""
        application = self.details()["applications"]["affinity"]
        return application["deployments"][name]["message"] if application["status"] == "DEPLOY_FAILED" else ""

    def runs(self) -> bool:
        """Whether every deployment is healthy. Fails if the application could not be deployed."""
        application = self.details()["applications"].get("affinity", {"status": "NOT_STARTED"})
        assert application["status"] != "DEPLOY_FAILED", application["message"]
        return application["status"] == "RUNNING"

    def replicas(self, name: str) -> dict[str, int]:
        """The replicas of a deployment that run: identifier → process."""
        found = self.details()["applications"]["affinity"]["deployments"][name]["replicas"]
        return {replica["replica_id"]: replica["pid"] for replica in found if replica["state"] == "RUNNING"}

    def details(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.dashboard}/api/serve/applications/", timeout=60) as response:
            return json.load(response)

    def samples(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        """The samples of a metric on both nodes: labels and value."""
        for port in self.metrics_ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
                for line in response.read().decode().splitlines():
                    if line.startswith(f"{name}{{"):
                        labels, _, value = line.removeprefix(f"{name}{{").rpartition("} ")
                        pairs = (pair.partition("=") for pair in labels.split(",") if "=" in pair)
                        yield {key: text.strip('"') for key, _, text in pairs}, float(value)


@contextmanager
def running_cluster(artifacts: Path) -> Iterator[Cluster]:
    """Start both nodes. They end with the block, and so do their processes."""
    head, dashboard, http, grpc, client, *metrics = free_ports(7)
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets are below it
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        first = ["--head", f"--port={head}", f"--dashboard-port={dashboard}", f"--temp-dir={directory}"]
        first += ["--dashboard-host=127.0.0.1", f"--ray-client-server-port={client}"]
        start_node(stack, *first, f"--metrics-export-port={metrics[0]}", log=Path(directory) / "head.log")
        url = f"http://127.0.0.1:{dashboard}"
        wait_until(lambda: reachable(f"{url}/api/serve/applications/"), "the first node")
        second = [f"--address=127.0.0.1:{head}", "--node-ip-address=127.0.0.2", f"--metrics-export-port={metrics[1]}"]
        start_node(stack, *second, log=Path(directory) / "second.log")
        wait_until(lambda: count_nodes(url) == 2, "the second node")
        yield Cluster(url, config_for(artifacts, http_port=http, grpc_port=grpc), tuple(metrics))


def start_node(stack: ExitStack, *flags: str, log: Path) -> None:
    command = [BIN / "ray", "start", "--block", "--num-cpus=2", f"--object-store-memory={MEMORY}"]
    command += ["--disable-usage-stats", "--dashboard-agent-listen-port=0", *flags]
    output = stack.enter_context(log.open("w"))
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    stack.callback(stop_node, process)


def stop_node(process: subprocess.Popen) -> None:
    """End the node and its workers at once: nothing of it is needed any more."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: is_empty(process.pid), "the end of all processes of a node")


def is_empty(group: int) -> bool:
    """Whether a group of processes has ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except (OSError, urllib.error.URLError):
        return False


def count_nodes(dashboard: str) -> int:
    with urllib.request.urlopen(f"{dashboard}/nodes?view=summary", timeout=60) as response:
        nodes = json.load(response)["data"]["summary"]
    return sum(node["raylet"].get("state") == "ALIVE" for node in nodes)


def config_for(artifacts: Path, *, http_port: int, grpc_port: int) -> dict[str, Any]:
    """The shipped configuration on other ports, and with so few CPUs that two nodes fit on this machine."""
    config = yaml.safe_load(CONFIG.read_text())
    config["http_options"] = {"host": "127.0.0.1", "port": http_port}
    config["grpc_options"]["port"] = grpc_port
    [application] = config["applications"]
    application["args"] |= {"artifacts": str(artifacts), "threads": 1}
    for deployment in application["deployments"]:
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        deployment["health_check_period_s"] = 1
    return config


def free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]
