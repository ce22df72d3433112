"""Weights in 8 and 4 bits: what is rounded, what is not, how far it may lead, and that a server takes it."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir
import pytest
from google.protobuf.json_format import Parse

from export import precisions
from export.__main__ import main
from export.artifact import inspection
from export.errors import ExportError
from export.graph.quantise import quantize
from export.precisions import PRECISIONS
from protos.manifest_pb2 import Manifest
from server.client import Client
from tests.serving import ROOT, served

KINDS = ("bert", "classifier", "embedder", "gpt", "vit", "mixer")
INT8, INT4 = PRECISIONS["int8-weights"], PRECISIONS["int4-weights"]
# Of models of two blocks: products in 8 or 4 bits, and those of them that make the result.
PRODUCTS = {
    "bert": (14, 2),
    "classifier": (14, 2),
    "embedder": (12, 0),
    "gpt": (9, 1),
    "vit": (14, 1),
    "mixer": (8, 1),
}


@pytest.fixture(scope="module")
def rounded(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with every kind of model in int8-weights, as the command exports it."""
    root = tmp_path_factory.mktemp("rounded")
    sources = [str(checkpoints[kind]) for kind in KINDS]
    assert main([*sources, "--artifacts", str(root), "--target", "cpu=int8-weights"]) == 0
    return root


def bits(graph: onnx_ir.Graph) -> Counter[int]:
    """How many products there are of each number of bits."""
    return Counter(node.attributes.get_int("bits", 0) for node in graph if node.op_type == "MatMulNBits")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", [INT8, INT4, replace(INT4, head="int4"), replace(INT8, head="fp32")], ids=str)
def test_every_matrix_is_quantised_and_the_head_as_the_user_chooses(
    kind: str, precision: precisions.Precision, artifacts: Callable[[str], Path]
) -> None:
    model = onnx_ir.load(artifacts(kind) / "cpu.onnx")
    before = len(model.graph)
    graph = quantize(model, precision).graph
    products, head = PRODUCTS[kind]
    expected = Counter({precisions.BITS[precision.weights]: products - head})
    expected[precisions.BITS[precision.head]] += head
    assert bits(graph) == {count: number for count, number in expected.items() if count and number}
    shared = kind in ("bert", "gpt") and precision.head == "int8"
    assert len(graph) == before + shared  # one for one, and a matrix in two shapes
    assert [node.op_type for node in graph].count("GatherBlockQuantized") == shared


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_has_the_cost_of_quantisation(kind: str, rounded: Path) -> None:
    directory = rounded / f"tiny-{kind}/1"
    (graph,) = Parse((directory / "manifest.json").read_text(), Manifest()).graphs
    assert (graph.target, graph.precision, graph.head_precision) == ("cpu", "int8-weights", "int8")
    assert (graph.parity.measure, graph.parity.tolerance) == ("root-mean-square", 0.1)
    assert 1e-3 < graph.parity.root_mean_square < 0.04
    assert inspection.verify(directory)["graphs"][0]["root_mean_square"] < 0.04


def test_the_same_source_is_quantised_to_the_same_bytes(
    rounded: Path, artifacts: Callable[[str], Path], tmp_path: Path
) -> None:
    again = quantize(onnx_ir.load(artifacts("gpt") / "cpu.onnx"), INT8)
    onnx_ir.save(again, tmp_path / "cpu.onnx")
    assert (tmp_path / "cpu.onnx").read_bytes() == (rounded / "tiny-gpt/1/cpu.onnx").read_bytes()


def test_an_unused_matrix_is_removed(rounded: Path, artifacts: Callable[[str], Path]) -> None:
    for kind in ("vit", "gpt", "bert"):
        assert (rounded / f"tiny-{kind}/1/cpu.onnx").stat().st_size < 0.6 * (
            artifacts(kind) / "cpu.onnx"
        ).stat().st_size


def test_the_users_tolerance_is_applied(export, checkpoints: dict[str, Path]) -> None:
    strict = export(checkpoints["mixer"], "--target", "cpu=int4-weights", "--tolerance", "0.01")
    assert (strict.status, strict.visible) == (1, [])
    assert "expected root-mean-square ≤ 0.01 in int4-weights" in strict.complained
    lax = export(checkpoints["mixer"], "--target", "cpu=int4-weights", "--tolerance", "0.3", "--head-precision", "fp32")
    assert (lax.status, lax.visible) == (0, ["1"])
    manifest = Parse((lax.artifacts / "tiny-mixer/1/manifest.json").read_text(), Manifest())
    assert manifest.source.options == "cpu=int4-weights (head fp32, tolerance 0.3)"
    assert (manifest.graphs[0].head_precision, manifest.graphs[0].parity.tolerance) == ("fp32", 0.3)


@pytest.mark.parametrize(
    ("target", "options", "complaint"),
    [
        ("cpu=fp32", {"head": "int8"}, "expected a quantised precision"),
        ("cpu=int8-weights", {"tolerance": -1.0}, "--tolerance: found -1"),
        ("cpu=int8-weights", {"tolerance": float("nan")}, "--tolerance: found nan"),
        ("cuda=int8-weights", {}, "expected one of fp16, fp32"),
    ],
)
def test_invalid_precisions_are_refused(target: str, options: dict, complaint: str) -> None:
    with pytest.raises(ExportError, match=complaint):
        precisions.parse(target, **options)


def test_a_server_runs_quantised_weights_for_every_task(rounded: Path) -> None:
    picture = (ROOT / "models/pretrained/vit-digits/example.png").read_bytes()
    with served(rounded) as running, Client(running.target) as client:
        models = [model for model in client.models() if not model.name.endswith(".raw")]
        assert {(model.state, model.precision) for model in models} == {("READY", "int8-weights")}
        assert len(client.fill_mask(["The [MASK] raises."], top_k=3)[0].masks[0].candidates) == 3
        assert len(client.classify_text(["A list is mutable."])[0].classes) == 3
        assert len(client.embed(["A list is mutable."])[0]) == 64
        for model in ("tiny-vit", "tiny-mixer"):
            assert len(client.classify_image([picture], model=model)[0].classes) > 0
        assert sum(len(piece.token_ids) for piece in client.generate("A list", max_tokens=5, seed=1)) == 5
