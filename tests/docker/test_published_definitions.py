"""The custom resources beside the definitions that their projects publish, as packages have them.

The packages of KEDA and of the Prometheus Operator may be older than the versions that the manifests are for, and know
less. KServe's SDK is in an environment of its own (make test-clients).
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.engine import ROOT
from tests.docker.manifests import KUBERNETES, only, render

NEWER = {".spec.fallback.behavior"}  # than KEDA 2.16
KSERVE = ROOT / ".venv-kserve"
SIMPLE = {"str": str, "int": int, "bool": bool}


@pytest.mark.parametrize("overlay", ["keda", "keda-metrics-api"])
def test_keda_knows_every_field_of_the_scaled_objects(overlay: str) -> None:
    from cloudcoil.models.keda.v1alpha1 import ScaledObject  # takes a second

    manifest = only(render(KUBERNETES / "overlays" / overlay), "ScaledObject")
    assert set(ignored(manifest, read_by(ScaledObject, manifest))) <= NEWER
    mistaken = {**manifest, "spec": {**manifest["spec"], "minReplicas": 2}}
    assert ".spec.minReplicas" in set(ignored(mistaken, read_by(ScaledObject, mistaken)))


@pytest.mark.parametrize("overlay", ["keda", "secure"])
@pytest.mark.parametrize("kind", ["PodMonitor", "PrometheusRule"])
def test_the_prometheus_operator_knows_every_field(overlay: str, kind: str) -> None:
    from cloudcoil.models.prometheus_operator import v1  # takes seconds

    manifest = only(render(KUBERNETES / "overlays" / overlay), kind)
    assert set(ignored(manifest, read_by(getattr(v1, kind), manifest))) == set()


@pytest.mark.skipif(not KSERVE.exists(), reason=f"no {KSERVE.name} (make test-clients)")
@pytest.mark.parametrize(("kind", "model"), [("ServingRuntime", "V1alpha1"), ("InferenceService", "V1beta1")])
def test_kserve_knows_every_field(kind: str, model: str) -> None:
    manifest = only(render(KUBERNETES / "overlays" / "kserve"), kind)
    assert list(unknown(manifest, model + kind, kserve_models(), "")) == []


def read_by(model: Any, manifest: dict[str, Any]) -> dict[str, Any]:
    """What a model, which ignores the fields that it does not know, reads from a manifest."""
    return model.model_validate(manifest).model_dump(by_alias=True, exclude_none=True, mode="json")


def ignored(given: Any, read: Any, path: str = "") -> Iterator[str]:
    """The paths of the fields that are given and were not read."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from ignored(value, read[key], f"{path}.{key}") if key in read else [f"{path}.{key}"]
    elif isinstance(given, list):
        for one, other in zip(given, read, strict=True):
            yield from ignored(one, other, path)


def kserve_models() -> dict[str, dict[str, str]]:
    """Name of a model → JSON name of a field → its type, from the source of the SDK, which takes minutes to import."""
    [folder] = KSERVE.glob("lib/python*/site-packages/kserve/models")
    return {name: fields for file in folder.glob("v1*.py") for name, fields in classes(file)}


def classes(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            tables = {
                each.targets[0].id: ast.literal_eval(each.value)
                for each in node.body
                if isinstance(each, ast.Assign) and each.targets[0].id in {"openapi_types", "attribute_map"}
            }
            if tables:
                names = tables["attribute_map"]
                yield node.name, {names[key]: kind for key, kind in tables["openapi_types"].items()}


def unknown(value: Any, kind: str, models: dict[str, dict[str, str]], path: str) -> Iterator[str]:
    """The paths of fields that a model does not have, or of another type, without those of Kubernetes's own models."""
    if kind.startswith("list["):
        for item in value:
            yield from unknown(item, kind.removeprefix("list[").removesuffix("]"), models, path)
    elif kind in models:
        for key, inner in value.items():
            known = models[kind].get(key)
            yield from unknown(inner, known, models, f"{path}.{key}") if known else [f"{path}.{key}"]
    elif not isinstance(value, SIMPLE.get(kind, object)):
        yield f"{path}: found {value!r}, expected {kind}"
