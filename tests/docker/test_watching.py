"""The dashboard and the alerts query metrics that exist, and compose.yaml refers to files and stages that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config.settings import Settings
from server.observability.prometheus import Metrics
from server.repository.gauges import ModelMetrics
from tests.docker.engine import DOCKERFILE, ROOT

DOCKER = ROOT / "docker"
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
DASHBOARD = json.loads((DOCKER / "grafana" / "affinity.json").read_text())
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
PROMETHEUS_OWN = {"up"}
GRAFANA_INTERVAL = "$__rate_interval"


def queries() -> Iterator[tuple[str, str]]:
    """The panel or alert of each query, and the query."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def series() -> set[str]:
    """The names of the server's metrics in Prometheus."""
    families = [*Metrics().registry.collect(), *ModelMetrics(lambda: (), lambda: ()).collect()]
    return {family.name + suffix for family in families for suffix in SUFFIXES.get(family.type, ("",))}


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_every_query_names_metrics_that_exist(where: str, query: str) -> None:
    names = set(re.findall(r"\b(?:affinity|nv_inference|grpc_server)_\w+", query))
    assert names or any(name in query for name in PROMETHEUS_OWN)
    assert names <= series()


def test_the_dashboard_lists_the_models_from_a_metric_that_exists() -> None:
    [variable] = DASHBOARD["templating"]["list"]
    assert re.findall(r"label_values\((\w+),", variable["query"]["query"])[0] in series()


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here")
def test_prometheus_understands_its_configuration_and_every_query(tmp_path: Path) -> None:
    run("promtool", "check", "config", DOCKER / "prometheus" / "prometheus.yml")
    rules = [
        {"record": f"dashboard:{number}", "expr": query.replace(GRAFANA_INTERVAL, "1m").replace("$model", ".*")}
        for number, (_, query) in enumerate(queries())
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", file)


def test_the_alerts_in_kubernetes_are_the_same() -> None:
    rules = yaml.safe_load((DOCKER / "kubernetes" / "components" / "podmonitor" / "alerts.yaml").read_text())
    assert rules["spec"] == ALERTS


def test_compose_builds_targets_and_mounts_files_that_exist() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    services: dict[str, dict[str, Any]] = COMPOSE["services"]
    for name, service in services.items():
        if "build" in service:
            assert service["build"]["target"] in stages, name
            assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).samefile(DOCKERFILE)
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], name


def test_compose_and_the_dockerfile_agree_on_the_base() -> None:
    [default] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    bases = {each["build"]["args"]["PYTHON_IMAGE"] for each in COMPOSE["services"].values() if "build" in each}
    assert bases == {f"${{PYTHON_IMAGE:-{default}}}"}


def test_compose_exports_every_bundled_model() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert COMPOSE["services"]["export"]["command"] == re.findall(r"^BUNDLED := (.*)$", makefile, re.M)[0].split()


def test_the_stop_grace_period_is_longer_than_the_drain_time() -> None:
    for name in ("server", "server-cuda"):
        assert int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s")) > Settings.drain_seconds


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
