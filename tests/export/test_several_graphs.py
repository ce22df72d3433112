"""Several graphs for one target in an artifact: the command, the files, the checks, and the server that opens each."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from export.__main__ import main
from export.artifact import graph_writer
from server.artifact import read_artifact
from server.client import Client
from server.config.settings import Settings
from server.errors import BadArtifact
from server.runtime.golden_check import check_parity
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice
from tests.artifacts import change_manifest
from tests.serving import served

KINDS = ("bert", "gpt", "mixer")
PRECISIONS = ("fp32", "int8-weights", "int4-weights")
TARGETS = ",".join(f"cpu={precision}" for precision in PRECISIONS)
CPU = ProviderChoice("cpu")


@pytest.fixture(scope="module")
def several(exported_together: Callable[[str, Sequence[str], str], Path]) -> Path:
    """The directory with models that have three graphs for CPUs."""
    return exported_together("several", KINDS, TARGETS)


def graphs(directory: Path) -> list[dict]:
    """The graphs of an artifact, as its manifest has them."""
    return json.loads((directory / "manifest.json").read_text("utf-8"))["graphs"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_graph_has_its_own_file_and_proof(kind: str, several: Path, artifacts: Callable[[str], Path]) -> None:
    found = graphs(several / f"tiny-{kind}/1")
    assert [(graph["target"], graph["precision"], graph["file"]) for graph in found] == [
        ("cpu", "fp32", "cpu.onnx"),
        ("cpu", "int8-weights", "cpu-int8-weights.onnx"),
        ("cpu", "int4-weights", "cpu-int4-weights.onnx"),
    ]
    assert [graph["parity"]["tolerance"] for graph in found] == [1e-4, 0.1, 0.5]
    assert found[0]["parity"]["maximum"] < 1e-4 < found[1]["parity"]["maximum"] < found[2]["parity"]["maximum"]
    assert found[0]["traced_nodes"] == found[1]["traced_nodes"] == found[2]["traced_nodes"]
    assert (several / f"tiny-{kind}/1/cpu.onnx").read_bytes() == (artifacts(kind) / "cpu.onnx").read_bytes()


def test_a_quantised_graph_is_the_same_beside_others(several: Path, export, checkpoints: dict[str, Path]) -> None:
    alone = export(checkpoints["mixer"], "--target", "cpu=int8-weights").artifacts / "tiny-mixer/1"
    assert (alone / "cpu.onnx").read_bytes() == (several / "tiny-mixer/1/cpu-int8-weights.onnx").read_bytes()
    assert [path.name for path in alone.glob("*.onnx")] == ["cpu.onnx"]


def test_the_first_precision_of_a_target_is_its_default_and_nothing_is_traced_twice(
    export, checkpoints: dict[str, Path]
) -> None:
    outcome = export(checkpoints["vit"], "--target", "cuda=fp32,cpu=int8-weights,cuda=fp16,cpu=int4-weights,cpu=fp32")
    assert outcome.status == 0, outcome.complained
    found = graphs(outcome.artifacts / "tiny-vit/1")
    assert [(graph["target"], graph["precision"], graph["file"]) for graph in found] == [
        ("cpu", "int8-weights", "cpu.onnx"),
        ("cpu", "int4-weights", "cpu-int4-weights.onnx"),
        ("cpu", "fp32", "cpu-fp32.onnx"),
        ("cuda", "fp32", "cuda.onnx"),
        ("cuda", "fp16", "cuda-fp16.onnx"),
    ]
    assert outcome.said.count(": trace") == 3
    assert found[3]["parity"]["maximum"] < 1e-4  # not converted to half precision before
    assert main(["verify", str(outcome.artifacts / "tiny-vit/1")]) == 0


def test_the_same_targets_need_no_second_export(export, checkpoints: dict[str, Path]) -> None:
    command = (checkpoints["mixer"], "--target", "cpu=fp32,cpu=int4-weights", "--tolerance", "0.6")
    assert export(*command).visible == ["1"]
    assert "is up to date" in export(*command).said
    other = (checkpoints["mixer"], "--target", "cpu=int4-weights,cpu=fp32", "--tolerance", "0.6")
    second = export(*other)
    assert second.visible == ["1", "2"]  # with another default
    assert graphs(second.artifacts / "tiny-mixer/2")[0]["parity"]["tolerance"] == 0.6


@pytest.mark.parametrize(
    ("kind", "target", "complaint"),
    [
        ("mixer", "cpu=fp32,cpu=fp32", "--target: found cpu=fp32 twice, expected each precision of a target once"),
        ("mixer", "cpu,cpu=int8-weights,cpu=fp32", "--target: found cpu=fp32 twice"),
        ("mixer", "", "--target: found '', expected one of cpu, cuda"),
        ("mixer", "cpu=fp32,cpu=fp16", "--target cpu: found 'fp16', expected one of fp32, int8-weights"),
        ("gpt", "cpu=fp32,cuda=fp16,cuda=fp32", "--target cuda=fp32: GroupQueryAttention has no fp32 kernel"),
    ],
)
def test_targets_that_do_not_fit_are_refused(
    kind: str, target: str, complaint: str, export, checkpoints: dict[str, Path]
) -> None:
    outcome = export(checkpoints[kind], "--target", target)
    assert outcome.status != 0
    assert complaint in outcome.complained
    assert outcome.visible == []


def test_a_manifest_with_a_graph_twice_is_refused(several: Path, copied: Callable[[Path], Path]) -> None:
    directory = copied(several / "tiny-mixer/1")
    change_manifest(directory, lambda fields: fields["graphs"][2].update(precision="int8-weights"))
    with pytest.raises(BadArtifact, match=r"graphs\[2\]: found cpu in int8-weights twice, expected each precision"):
        read_artifact(directory)


def test_inspect_and_verify_show_every_graph(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("inspect", "verify"):
        assert main([command, str(several / "tiny-bert/1")]) == 0
        said = capsys.readouterr().out
        assert all(f"  cpu {precision}" in said for precision in PRECISIONS)
    assert main(["verify", "--json", str(several / "tiny-gpt/1")]) == 0
    assert [graph["precision"] for graph in json.loads(capsys.readouterr().out)["graphs"]] == list(PRECISIONS)


def test_an_edited_manifest_is_sealed(several: Path, copied: Callable[[Path], Path]) -> None:
    directory = copied(several / "tiny-mixer/1")
    (directory / "manifest.json.sha256").write_text("")
    assert main(["seal", str(directory)]) == 0
    assert [graph.precision for graph in read_artifact(directory).graphs("cpu")] == list(PRECISIONS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_opens_each_graph_and_applies_its_tolerance(kind: str, several: Path) -> None:
    artifact = read_artifact(several / f"tiny-{kind}/1")
    assert [graph.precision for graph in artifact.graphs("cpu")] == list(PRECISIONS)
    assert artifact.graph("cpu").precision == "fp32"
    for precision, tolerance in zip(PRECISIONS, (1e-4, 0.1, 0.5), strict=True):
        session = open_session(artifact, CPU, Settings(threads=1), graph_precision=precision)
        assert (session.precision, check_parity(session, artifact).tolerance) == (precision, tolerance)
    with pytest.raises(BadArtifact, match=r"found graphs for cpu in fp32, .*, expected one for cpu in fp16"):
        open_session(artifact, CPU, Settings(), graph_precision="fp16")


def test_the_server_serves_the_default_graph(several: Path) -> None:
    with served(several) as running, Client(running.target) as client:
        models = [model for model in client.models() if not model.name.endswith(".raw")]
        assert [(model.state, model.precision) for model in models] == [("READY", "fp32")] * len(KINDS)
        assert len(client.fill_mask(["The [MASK] raises."], top_k=3)[0].masks[0].candidates) == 3


def test_the_weights_of_each_graph_are_its_own(
    export, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_writer, "EXTERNAL_BYTES", 10_000)
    directory = export(checkpoints["mixer"], "--target", "cpu=fp32,cpu=int8-weights").artifacts / "tiny-mixer/1"
    artifact = read_artifact(directory)
    for precision, name in (("fp32", "cpu.onnx"), ("int8-weights", "cpu-int8-weights.onnx")):
        sizes = [(directory / file).stat().st_size for file in (name, f"{name}.data")]
        assert artifact.graph_bytes("cpu", precision) == sum(sizes)
        session = open_session(artifact, CPU, Settings(threads=1), graph_precision=precision)
        assert check_parity(session, artifact).cases > 0
    assert not list(directory.glob("exact-*"))
