"""The manifests of docker/kubernetes: rendered, validated against published schemas, and consistent with the server."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.config import cli
from server.config.settings import Settings
from tests.docker import manifests as kubernetes
from tests.docker.engine import DOCKERFILE, ROOT
from tests.docker.manifests import KUBERNETES, NEWEST, OLDEST, container, environment, only, pod, render

OVERLAYS = {folder.name: folder for folder in sorted((KUBERNETES / "overlays").iterdir())}
DEPLOYMENTS = [name for name in OVERLAYS if name != "kserve"]
SERVERS = list(OVERLAYS)
AUTOSCALED = ["keda", "keda-metrics-api"]
STAGES = {"cpu": "server-cpu", "cuda": "server-cuda", "export": "export"}  # tag → stage of the Dockerfile
IMAGE_VOLUMES_SINCE = "1.35"  # enabled by default

each_server = pytest.mark.parametrize("name", SERVERS)
each_deployment = pytest.mark.parametrize("name", DEPLOYMENTS)


def settings(name: str) -> Settings:
    """The settings that the server has in an overlay, read by the server's own parser."""
    return cli.parse(container(render(OVERLAYS[name])).get("args", []), environment(render(OVERLAYS[name])))


# ---- rendering and schemas


@pytest.mark.parametrize("folder", [KUBERNETES / "export", *OVERLAYS.values()], ids=lambda folder: folder.name)
def test_every_resource_has_the_schema_of_the_oldest_and_the_newest_kubernetes(folder: Path) -> None:
    for version in (IMAGE_VOLUMES_SINCE if folder.name == "image-volume" else OLDEST, NEWEST):
        for manifest in render(folder):
            kubernetes.validate(manifest, version)


def test_the_namespace_has_its_schema() -> None:
    kubernetes.validate(yaml.safe_load((KUBERNETES / "namespace.yaml").read_text()), NEWEST)


@pytest.mark.parametrize("order", [("podmonitor", "keda", "tls", "image-volume"), ("image-volume", "tls", "keda")])
def test_an_overlay_of_your_own_can_have_all_components(order: tuple[str, ...], tmp_path: Path) -> None:
    overlay = {
        "resources": [os.path.relpath(OVERLAYS["gpu"], tmp_path)],
        "components": [os.path.relpath(KUBERNETES / "components" / name, tmp_path) for name in order],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    rendered = render(tmp_path)
    for manifest in rendered:
        kubernetes.validate(manifest, NEWEST)
    assert container(rendered)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container(rendered)["readinessProbe"]["httpGet"]["scheme"] == "HTTPS"
    assert "replicas" not in only(rendered, "Deployment")["spec"]
    [artifacts] = [volume for volume in pod(rendered)["volumes"] if volume["name"] == "artifacts"]
    assert set(artifacts) == {"name", "image"}


@pytest.mark.parametrize(
    ("name", "kind", "path", "value"),
    [
        ("cpu", "Deployment", ("spec", "template", "spec", "terminationGracePeriod"), 45),
        ("cpu", "Deployment", ("spec", "template", "spec", "containers", 0, "readinessProbe", "grpc", "port"), "grpc"),
        ("cpu", "PodDisruptionBudget", ("spec", "maxUnavailible"), 1),
        ("keda", "ScaledObject", ("spec", "fallback", "replicas"), "4"),
        ("keda", "ScaledObject", ("spec", "triggers", 0, "metadata", "ignoreNullValues"), False),
        ("keda-metrics-api", "ScaledObject", ("spec", "triggers", 0, "metadata", "aggregation"), "sum"),
        ("keda", "PodMonitor", ("spec", "podMetricsEndpoints", 0, "targetPort"), 8002),
        ("kserve", "ServingRuntime", ("spec", "containers", 0, "preStop"), {}),
        ("kserve", "InferenceService", ("spec", "predictor", "autoscaling"), {}),
    ],
)
def test_validation_finds_mistakes(name: str, kind: str, path: tuple[Any, ...], value: Any) -> None:
    manifest = yaml.safe_load(yaml.safe_dump(only(render(OVERLAYS[name]), kind)))
    parent = manifest
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        kubernetes.validate(manifest, NEWEST)


# ---- settings and ports


@each_server
def test_the_server_knows_every_setting(name: str) -> None:
    settings(name)
    assert cli.ignored_variables(environment(render(OVERLAYS[name]))) == ([], [])


def test_help_lists_every_variable() -> None:
    shown = subprocess.run([sys.executable, "-m", "server", "--help"], cwd=ROOT, capture_output=True, text=True).stdout
    used = {variable for name in SERVERS for variable in environment(render(OVERLAYS[name]))}
    assert used
    assert {variable for variable in used if f"[{variable}]" not in shown} == set()


@each_server
def test_ports_are_those_of_the_server(name: str) -> None:
    server, declared = settings(name), container(render(OVERLAYS[name]))["ports"]
    ports = {port["name"]: port["containerPort"] for port in declared}
    assert ports == ({"h2c": server.port} if name == "kserve" else {"grpc": server.port, "http": server.http_port})
    assert server.host == "0.0.0.0"
    for probe in probes(name).values():
        number = probe["grpc"]["port"] if "grpc" in probe else probe["httpGet"]["port"]
        assert ports.get(number, number) == (server.port if "grpc" in probe else server.http_port)


@each_server
def test_the_artifacts_and_secrets_are_mounted_where_the_server_reads_them(name: str) -> None:
    server, manifests = settings(name), render(OVERLAYS[name])
    mounts = {Path(mount["mountPath"]): mount for mount in container(manifests)["volumeMounts"]}
    files = [file for file in (server.tls_cert, server.tls_key, server.auth_tokens) if file]
    folders = {file.parent for file in files} | ({server.artifacts} if name != "kserve" else set())
    assert folders | {Path("/tmp")} == set(mounts)
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {Path("/tmp")}
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in pod(manifests)["volumes"]}


@each_server
def test_images_have_tags_of_stages_that_exist(name: str) -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    repository, _, tag = container(render(OVERLAYS[name]))["image"].rpartition(":")
    assert repository == "registry.example/affinity"
    assert STAGES[tag] in stages


def test_the_job_exports_the_bundled_models_to_the_volume_of_the_servers() -> None:
    job = render(KUBERNETES / "export")
    bundled = re.findall(r"^BUNDLED := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert container(job)["args"] == bundled
    claim = only(job, "PersistentVolumeClaim")["metadata"]["name"]
    for manifests in (job, render(OVERLAYS["cpu"]), render(OVERLAYS["gpu"])):
        volumes = [volume for volume in pod(manifests)["volumes"] if "emptyDir" not in volume]
        assert [volume["persistentVolumeClaim"]["claimName"] for volume in volumes] == [claim]
    predictor = only(render(OVERLAYS["kserve"]), "InferenceService")["spec"]["predictor"]
    assert predictor["model"]["storageUri"] == f"pvc://{claim}"


# ---- probes and stopping


def probes(name: str) -> dict[str, dict[str, Any]]:
    return {kind: container(render(OVERLAYS[name]))[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}


@each_server
def test_probes_fit_the_encryption(name: str) -> None:
    found = probes(name)
    liveness = found.pop("liveness")["httpGet"]
    assert liveness["path"] == "/livez"
    for probe in found.values():
        if settings(name).tls_cert:  # the kubelet's gRPC probe speaks no TLS
            assert "grpc" not in probe
            assert (probe["httpGet"]["path"], probe["httpGet"]["scheme"]) == ("/readyz", "HTTPS")
            assert liveness["scheme"] == "HTTPS"
        else:
            assert set(probe["grpc"]) == {"port"}
            assert "scheme" not in liveness


@each_server
def test_the_grace_period_covers_all_steps_of_a_stop(name: str) -> None:
    server, manifests = settings(name), render(OVERLAYS[name])
    before = container(manifests)["lifecycle"]["preStop"]["sleep"]["seconds"]
    steps = (before, server.shutdown_delay_seconds, server.drain_seconds)
    assert min(steps) > 0
    assert pod(manifests)["terminationGracePeriodSeconds"] > sum(steps) + 1


@each_deployment
def test_a_rollout_waits_for_slow_starts(name: str) -> None:
    startup = probes(name)["startup"]
    deployment = only(render(OVERLAYS[name]), "Deployment")["spec"]
    assert deployment["progressDeadlineSeconds"] > startup["periodSeconds"] * startup["failureThreshold"]


# ---- hardening


@pytest.mark.parametrize("folder", [KUBERNETES / "export", *OVERLAYS.values()], ids=lambda folder: folder.name)
def test_pods_are_hardened(folder: Path) -> None:
    specification, [box] = pod(render(folder)), pod(render(folder))["containers"]
    user, own = specification["securityContext"], box["securityContext"]
    assert user["runAsNonRoot"]
    assert {user["runAsUser"], user["runAsGroup"], user["fsGroup"]} == {10001}  # that of the images
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert not specification["automountServiceAccountToken"]
    assert not specification["enableServiceLinks"]
    assert "memory" in box["resources"]["limits"]


# ---- what selects what


@each_deployment
def test_selectors_and_port_names_lead_to_the_pods(name: str) -> None:
    manifests = render(OVERLAYS[name])
    deployment = only(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in container(manifests)["ports"]}
    service, policy = only(manifests, "Service")["spec"], only(manifests, "NetworkPolicy")["spec"]
    assert service["clusterIP"] == "None"
    selectors = [service["selector"], deployment["selector"]["matchLabels"], policy["podSelector"]["matchLabels"]]
    selectors += [only(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]]
    selectors += [each["labelSelector"]["matchLabels"] for each in pod(manifests)["topologySpreadConstraints"]]
    names = {port["targetPort"] for port in service["ports"]}
    names |= {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    for monitor in (each["spec"] for each in manifests if each["kind"] == "PodMonitor"):
        selectors.append(monitor["selector"]["matchLabels"])
        names |= {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
        assert monitor["jobLabel"] in dict(labels)
    assert all(selector.items() <= labels for selector in selectors)
    assert names == ports


# ---- autoscaling and KServe


@pytest.mark.parametrize("name", AUTOSCALED)
def test_the_autoscaler_owns_the_number_of_replicas(name: str) -> None:
    manifests = render(OVERLAYS[name])
    scaled, deployment = only(manifests, "ScaledObject")["spec"], only(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    assert scaled["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert 1 < scaled["minReplicaCount"] < scaled["fallback"]["replicas"] < scaled["maxReplicaCount"]
    for trigger in scaled["triggers"]:
        assert trigger["type"] == "metrics-api" or trigger["metadata"]["ignoreNullValues"] == "false"


def test_keda_without_prometheus_reads_each_bundled_model_from_all_pods() -> None:
    manifests = render(OVERLAYS["keda-metrics-api"])
    service, server = only(manifests, "Service"), settings("keda-metrics-api")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    read = [trigger["metadata"] for trigger in only(manifests, "ScaledObject")["spec"]["triggers"]]
    assert {each["url"] for each in read} == {f"http://{host}:{server.http_port}/metrics/own"}
    assert {(each["aggregateFromKubeServiceEndpoints"], each["aggregationType"]) for each in read} == {("true", "sum")}
    models = [re.fullmatch(r'affinity_queue_rows\{model="(.+)"\}', each["valueLocation"])[1] for each in read]
    assert models == container(render(KUBERNETES / "export"))["args"]
    metrics = only(manifests, "NetworkPolicy")["spec"]["ingress"][1]
    readers = [each["namespaceSelector"]["matchLabels"] for each in metrics["from"]]
    assert {"kubernetes.io/metadata.name": "keda"} in readers


def test_kserve_declares_the_grpc_port_alone() -> None:
    manifests = render(OVERLAYS["kserve"])
    runtime, service = only(manifests, "ServingRuntime"), only(manifests, "InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert container(manifests)["name"] == "kserve-container"
    assert [port["name"] for port in container(manifests)["ports"]] == ["h2c"]
    assert runtime["spec"]["protocolVersions"] == [model["protocolVersion"]] == ["grpc-v2"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in runtime["spec"]["supportedModelFormats"]}
    assert settings("kserve").artifacts == Path("/mnt/models")
    assert int(runtime["spec"]["annotations"]["prometheus.kserve.io/port"]) == settings("kserve").http_port
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
