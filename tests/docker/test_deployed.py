"""Real servers with the settings of compose.secure.yaml and of the overlays: clients, probes and Prometheus."""

import os
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.client import CallFailed, Client, Tls
from server.config import cli
from tests.docker.engine import ROOT
from tests.docker.manifests import KUBERNETES, container, environment, render
from tests.prometheus import PATIENCE_S, eventually, needs_prometheus, prometheus
from tests.serving import Served, served

DOCKER = ROOT / "docker"
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


class Composition(yaml.SafeLoader):
    """Reads the files of Docker Compose, with its tags."""


Composition.add_constructor("!override", lambda loader, node: loader.construct_sequence(node))
PLAIN = yaml.load((DOCKER / "compose.yaml").read_text(), Composition)
SECURE = yaml.load((DOCKER / "compose.secure.yaml").read_text(), Composition)


@dataclass(frozen=True)
class Secured:
    """A server with the settings of compose.secure.yaml, and the files that docker/secrets.sh made."""

    server: Served
    secrets: Path

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.secrets / "ca.crt")


@pytest.fixture(scope="module")
def secured(bundled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    shutil.copy(DOCKER / "secrets.sh", folder)
    subprocess.run([folder / "secrets.sh", "affinity.example"], check=True, capture_output=True)
    inside = SECURE["services"]["server"]["environment"]
    variables = {name: value.replace("/secrets/", f"{folder}/secrets/server/") for name, value in inside.items()}
    with served(bundled, "--models", "bert-mini", environment={**os.environ, **variables}) as running:
        yield Secured(running, folder / "secrets")


# ---- Docker Compose


def test_the_override_changes_services_and_settings_that_exist() -> None:
    for name, service in SECURE["services"].items():
        assert name in PLAIN["services"]
        variables = service.get("environment", {})
        assert cli.ignored_variables(variables) == ([], [])
        paths = [value for value in variables.values() if value.startswith("/")]
        mounted = [volume.split(":")[1] for volume in service["volumes"]]
        assert {str(Path(path).parent) for path in paths} <= set(mounted)


def test_only_the_ports_of_servers_are_open_to_other_machines() -> None:
    inside = {port.split(":")[-1] for port in PLAIN["services"]["server"]["ports"]}
    for name, service in PLAIN["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    opened = {name: service["ports"] for name, service in SECURE["services"].items() if "ports" in service}
    assert set(opened) == {"server", "server-cuda"}
    assert all({port.split(":")[-1] for port in ports} == inside for ports in opened.values())


def test_prometheus_runs_as_in_the_image_with_the_configuration_for_tls() -> None:
    configuration, storage = SECURE["services"]["prometheus"]["command"]
    assert (DOCKER / "prometheus" / Path(configuration.partition("=")[2]).name).exists()
    assert storage.partition("=")[2] == PLAIN["services"]["prometheus"]["volumes"][1].split(":")[1]
    plain, secure = (
        yaml.safe_load((DOCKER / "prometheus" / name).read_text())
        for name in ("prometheus.yml", "prometheus.secure.yml")
    )
    [job], [secured_job] = plain["scrape_configs"], secure["scrape_configs"]
    assert job.items() <= secured_job.items()
    assert {**plain, "scrape_configs": ()} == {**secure, "scrape_configs": ()}


def test_secrets_are_never_replaced(secured: Secured, tmp_path: Path) -> None:
    shutil.copy(DOCKER / "secrets.sh", tmp_path)
    shutil.copytree(secured.secrets, tmp_path / "secrets")
    done = subprocess.run([tmp_path / "secrets.sh"], capture_output=True, text=True)
    assert (done.returncode, "exists already" in done.stderr) == (1, True)
    assert (tmp_path / "secrets" / "server" / "tls.key").read_bytes() == (
        secured.secrets / "server" / "tls.key"
    ).read_bytes()


def test_only_their_owner_enters_the_folder_of_secrets(secured: Secured) -> None:
    assert secured.secrets.stat().st_mode & 0o777 == 0o700
    assert all(file.stat().st_mode & 0o004 for file in (secured.secrets / "server").iterdir())  # for the image's user


def test_a_client_needs_the_authority_and_a_token(secured: Secured) -> None:
    target, tls = f"localhost:{secured.server.port}", Tls(secured.secrets / "ca.crt")
    with Client(target, tls=tls, token=(secured.secrets / "client-token").read_text()) as client:
        assert client.fill_mask(["The [MASK] statement raises an exception."])
    with Client(target, tls=tls) as client, pytest.raises(CallFailed, match="expected `Bearer` and a valid token"):
        client.fill_mask(["The [MASK] statement raises an exception."])


def test_metrics_need_a_token(secured: Secured) -> None:
    url = f"https://localhost:{secured.server.http_port}/metrics"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=PATIENCE_S, context=secured.context())


@needs_prometheus
def test_prometheus_scrapes_with_tls_and_a_token(secured: Secured, tmp_path: Path) -> None:
    text = (DOCKER / "prometheus" / "prometheus.secure.yml").read_text()
    config = yaml.safe_load(text.replace("/secrets/", f"{secured.secrets}/prometheus/"))
    config |= {"global": {"scrape_interval": "1s"}, "rule_files": [str(DOCKER / "prometheus" / "alerts.yml")]}
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [f"127.0.0.1:{secured.server.http_port}"]}]
    with prometheus(config, tmp_path) as monitoring:
        eventually(lambda: monitoring.query('up{job="affinity"}') == [1])
        assert monitoring.query('affinity_authenticated_calls_total{client="client"}')


# ---- probes of Kubernetes, as the kubelet sends them


def succeeds(probe: dict[str, Any], server: Served) -> bool:
    """Send a probe of a manifest to a server on other ports. The kubelet verifies no certificates."""
    if "grpc" in probe:
        with grpc.insecure_channel(server.target) as channel:
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_S)
            return answer.status == health_pb2.HealthCheckResponse.SERVING
    get, context = probe["httpGet"], ssl._create_unverified_context()
    url = f"{get.get('scheme', 'HTTP').lower()}://127.0.0.1:{server.http_port}{get['path']}"
    with urllib.request.urlopen(
        url, timeout=PATIENCE_S, context=context if get.get("scheme") == "HTTPS" else None
    ) as answer:
        return 200 <= answer.status < 400


@pytest.mark.parametrize("name", ["cpu", "gpu", "keda", "kserve"])
def test_a_server_in_plain_text_answers_the_probes(name: str, bundled_running: Served) -> None:
    box = container(render(KUBERNETES / "overlays" / name))
    assert all(succeeds(box[probe], bundled_running) for probe in PROBES)


def test_a_server_with_tls_and_tokens_answers_the_probes(secured: Secured) -> None:
    manifests = render(KUBERNETES / "overlays" / "secure")
    assert {"AFFINITY_TLS_CERT", "AFFINITY_AUTH_TOKENS"} <= set(environment(manifests))
    assert all(succeeds(container(manifests)[probe], secured.server) for probe in PROBES)


def test_the_kubelets_grpc_probe_fails_with_tls(secured: Secured) -> None:
    """The reason why the overlay with TLS has other probes."""
    with pytest.raises(grpc.RpcError):
        succeeds({"grpc": {"port": 8001}}, secured.server)
