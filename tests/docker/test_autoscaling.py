"""Every query in docker/kubernetes, the dashboard and the alerts, by a real Prometheus over real servers under load."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.docker.engine import ROOT
from tests.docker.manifests import KUBERNETES, only, render
from tests.docker.test_watching import GRAFANA_INTERVAL, queries
from tests.prometheus import PATIENCE_S, Prometheus, eventually, needs_prometheus, prometheus
from tests.serving import Served, served

MODEL, QUEUE = "bert-mini", 3
# Inputs wait for others to share their batch, so that a queue stays as long as it is
WAITS = ("--models", MODEL, "--set", f"{MODEL}.max_delay_seconds=600", "--set", f"{MODEL}.max_queue_requests={QUEUE}")
CALL = pb.FillMaskRequest(inputs=["The [MASK] statement raises an exception."])


@dataclass
class Pods:
    """Two servers whose queues are full, and clients that go on calling them."""

    servers: list[Served]
    stubs: list[AffinityStub]

    def refused(self) -> None:
        """One more call to each server, which its full queue refuses."""
        for stub in self.stubs:
            with pytest.raises(grpc.RpcError) as error:
                stub.FillMask(CALL, timeout=PATIENCE_S)
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, error.value


@pytest.fixture(scope="module")
def pods(bundled: Path) -> Iterator[Pods]:
    with ExitStack() as stack:
        servers = [stack.enter_context(served(bundled, *WAITS)) for _ in range(2)]
        channels = [stack.enter_context(grpc.insecure_channel(server.target)) for server in servers]
        found = Pods(servers, [AffinityStub(channel) for channel in channels])
        waiting = [stub.FillMask.future(CALL) for stub in found.stubs for _ in range(QUEUE)]
        for server in servers:
            eventually(lambda server=server: keda_value(server, f'affinity_queue_rows{{model="{MODEL}"}}') == QUEUE)
        yield found
        for call in waiting:
            call.cancel()


@pytest.fixture(scope="module")
def monitoring(pods: Pods, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the files of docker/prometheus; the labels of the targets are those that a PodMonitor gives."""
    folder = ROOT / "docker" / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(folder / name) for name in config["rule_files"]]
    [job] = config["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [
        {"targets": [f"127.0.0.1:{server.http_port}"], "labels": {"namespace": "affinity", "pod": f"affinity-{number}"}}
        for number, server in enumerate(pods.servers)
    ]
    with prometheus(config, tmp_path_factory.mktemp("prometheus")) as running:
        eventually(lambda: running.query('sum(up{job="affinity"})') == [len(pods.servers)])
        yield running


def autoscaling_queries() -> list[str]:
    """All queries in the overlays: those of KEDA's triggers, and KServe's."""
    found = []
    for overlay in sorted((KUBERNETES / "overlays").iterdir()):
        found += [each for each in strings_at("query", render(overlay)) if each not in found]
    return found


def strings_at(key: str, node: Any) -> Iterator[str]:
    """The values of a key anywhere in a manifest."""
    if isinstance(node, dict):
        yield from (node[key] for _ in range(key in node))
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from strings_at(key, child)


def keda_value(server: Served, location: str) -> float | None:
    """What KEDA's metrics-api scaler reads: the first sample with a name and labels. There must be only one."""
    [(name, wanted)] = [(each.name, each.labels) for each in samples(f"{location} 0\n")]
    with urlopen(server.url("/metrics/own"), timeout=PATIENCE_S) as answer:
        exposed = samples(answer.read().decode())
    values = [each.value for each in exposed if each.name == name and wanted.items() <= each.labels.items()]
    assert len(values) <= 1, f"several samples are {location}"
    return values[0] if values else None


def samples(text: str) -> list[Any]:
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


@needs_prometheus
@pytest.mark.parametrize("query", autoscaling_queries())
def test_a_query_has_one_element_which_grows_under_load(query: str, pods: Pods, monitoring: Prometheus) -> None:
    def answer() -> float:
        pods.refused()
        elements = monitoring.query(query)
        assert len(elements) <= 1, f"{query}: found {elements}, expected one element"
        return sum(elements)

    eventually(lambda: answer() > 0)


@needs_prometheus
def test_the_queues_of_all_pods_are_added(pods: Pods, monitoring: Prometheus) -> None:
    total = 'sum(affinity_queue_rows{namespace="affinity"})'
    eventually(lambda: monitoring.query(total) == [QUEUE * len(pods.servers)])
    assert monitoring.query('sum(affinity_queue_rows{namespace="another"})') == []  # KEDA: the target may be lost


@needs_prometheus
def test_prometheus_answers_every_query_of_the_dashboard_and_evaluates_every_alert(monitoring: Prometheus) -> None:
    for _, query in queries():
        monitoring.query(query.replace(GRAFANA_INTERVAL, "1m").replace("$model", ".*"))
    assert evaluated(monitoring)
    eventually(lambda: {rule["health"] for rule in evaluated(monitoring)} == {"ok"})


def evaluated(monitoring: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in monitoring.get("rules")["groups"] for rule in group["rules"]]


def test_keda_without_prometheus_finds_one_sample_for_each_trigger(bundled_running: Served) -> None:
    triggers = only(render(KUBERNETES / "overlays" / "keda-metrics-api"), "ScaledObject")["spec"]["triggers"]
    assert [keda_value(bundled_running, each["metadata"]["valueLocation"]) for each in triggers] == [0] * len(triggers)


def test_keda_without_prometheus_reads_the_queue(pods: Pods) -> None:
    assert [keda_value(server, f'affinity_queue_rows{{model="{MODEL}"}}') for server in pods.servers] == [QUEUE] * 2
    assert keda_value(pods.servers[0], 'affinity_queue_rows{model="unknown"}') is None  # an error in KEDA: `fallback`
