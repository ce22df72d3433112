"""Products of integers (int8-dynamic): what is quantised, its cost, what is refused, and a server that runs it."""

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from google.protobuf.json_format import Parse
from numpy.typing import NDArray
from PIL import Image

from export.__main__ import main
from export.artifact import graph_writer
from export.graph.dynamic import LARGEST, quantize_columns, quantize_products
from export.graph.quantise import quantize
from export.graph.runtime import Runtime
from export.precisions import PRECISIONS
from protos import affinity_pb2 as pb
from protos.manifest_pb2 import Manifest
from server.artifact import read_artifact
from server.client import Client
from server.config.settings import Settings
from server.errors import ProviderUnavailable
from server.runtime.providers import ProviderChoice
from server.runtime.sessions import open_unchecked
from tests.serving import ROOT, served

KINDS = ("bert", "classifier", "embedder", "vit", "mixer", "gpt")
VARIANTS = (
    "roberta",
    "deit-with-teacher",
    pytest.param("distilbert-classifier", marks=pytest.mark.large),
    pytest.param("layered-embedder", marks=pytest.mark.large),
)
DYNAMIC = PRECISIONS["int8-dynamic"]
TARGETS = "cpu=fp32,cpu=int8-dynamic"
# Of models of two blocks: products of integers, quantised inputs (one for queries, keys and values), and products of
# the head.
NODES = {
    "bert": (12, 8, 2),
    "classifier": (12, 8, 2),
    "embedder": (12, 8, 0),
    "vit": (13, 9, 1),
    "mixer": (9, 9, 1),
    "gpt": (8, 8, 1),
}


@pytest.fixture(scope="module")
def dynamic(exported_together: Callable[[str, Sequence[str], str], Path]) -> Path:
    """The directory with models that have two graphs for CPUs, as the command exports them."""
    return exported_together("dynamic", KINDS, TARGETS)


def read_manifest(directory: Path) -> Manifest:
    return Parse((directory / "manifest.json").read_text(), Manifest())


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_with_a_matrix_is_one_of_integers(kind: str, dynamic: Path) -> None:
    graph = onnx_ir.load(dynamic / f"tiny-{kind}/1/cpu-int8-dynamic.onnx").graph
    kinds = Counter(node.op_type for node in graph)
    found = [kinds[each] for each in ("MatMulIntegerToFloat", "QuantizeLinear", "MatMulNBits")]
    assert tuple(found) == NODES[kind]
    assert not {"MatMul", "FusedMatMul", "Gemm"} & kinds.keys()
    integers = [
        value.const_value.numpy() for value in graph.initializers.values() if value.dtype == onnx_ir.DataType.INT8
    ]
    assert len(integers) == kinds["MatMulIntegerToFloat"]
    assert max(np.abs(matrix.astype(int)).max() for matrix in integers) == LARGEST  # not even -64


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_has_the_cost_of_quantisation(kind: str, dynamic: Path) -> None:
    graph = read_manifest(dynamic / f"tiny-{kind}/1").graphs[1]
    assert (graph.precision, graph.head_precision) == ("int8-dynamic", "int8")
    assert (graph.parity.measure, graph.parity.tolerance) == ("root-mean-square", 0.1)
    assert 1e-3 < graph.parity.root_mean_square < 0.08
    assert main(["verify", str(dynamic / f"tiny-{kind}/1")]) == 0


@pytest.mark.parametrize("head", ["fp32", "int4"])
def test_the_head_is_quantised_as_the_user_chooses(head: str, artifacts: Callable[[str], Path]) -> None:
    graph = quantize(quantize_products(onnx_ir.load(artifacts("bert") / "cpu.onnx")), replace(DYNAMIC, head=head)).graph
    kinds = Counter(node.op_type for node in graph)
    assert kinds["MatMulNBits"] == (0 if head == "fp32" else 2)
    assert kinds["MatMulIntegerToFloat"] == 12


def test_the_same_source_is_quantised_to_the_same_bytes(
    dynamic: Path, artifacts: Callable[[str], Path], tmp_path: Path
) -> None:
    for kind in ("bert", "mixer"):
        graph_writer.quantize_saved(artifacts(kind) / "cpu.onnx", tmp_path / "again.onnx", DYNAMIC)
        expected = (dynamic / f"tiny-{kind}/1/cpu-int8-dynamic.onnx").read_bytes()
        assert (tmp_path / "again.onnx").read_bytes() == expected


def test_each_column_has_a_scale_of_its_own_and_zeros_stay_zero() -> None:
    matrix = np.array([[1e-3, 100, 0], [-2e-3, 50, 0]], np.float32)
    integers, scales = quantize_columns(matrix)
    assert integers.tolist() == [[32, 63, 0], [-63, 32, 0]]
    assert (np.abs(integers * scales - matrix) <= 0.501 * scales).all()
    assert integers.dtype == np.int8


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_architectures_are_quantised(
    variant: str, export, variant_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    outcome = export(variant_checkpoints[variant], "--target", "cpu=int8-dynamic", "--name", "variant")
    assert outcome.status == 0, outcome.complained
    (graph,) = read_manifest(outcome.artifacts / "variant/1").graphs
    assert (graph.precision, graph.file) == ("int8-dynamic", "cpu.onnx")
    kinds = Counter(node.op_type for node in onnx_ir.load(outcome.artifacts / "variant/1/cpu.onnx").graph)
    assert kinds["MatMulIntegerToFloat"] > 0
    assert not {"MatMul", "FusedMatMul"} & kinds.keys()


def test_an_input_of_zeros_or_of_one_token_is_answered(dynamic: Path) -> None:
    runtime = Runtime(dynamic / "tiny-vit/1/cpu-int8-dynamic.onnx")
    shape = [size if isinstance(size, int) else 1 for size in runtime.session.get_inputs()[0].shape]
    assert np.isfinite(runtime.run({"pixel_values": np.zeros(shape, np.float32)})["logits"]).all()


@pytest.mark.parametrize(
    ("kind", "arguments", "complaint"),
    [
        ("gpt", ["--target", "cuda=int8-dynamic"], "--target cuda: found 'int8-dynamic', expected one of fp16, fp32"),
        ("vit", ["--target", "cuda=int8-dynamic"], "--target cuda: found 'int8-dynamic', expected one of fp16, fp32"),
        ("vit", ["--target", "cpu=int4-dynamic"], "expected one of fp32, int8-weights, int4-weights, int8-dynamic"),
        ("vit", ["--target", "cpu=int8-dynamic", "--tolerance", "0.0001"], "≤ 0.0001 in int8-dynamic"),
        ("vit", ["--target", "cpu=int8-dynamic", "--tolerance", "0"], "--tolerance: found 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, arguments: list[str], complaint: str, export, checkpoints: dict[str, Path]
) -> None:
    outcome = export(checkpoints[kind], *arguments)
    assert outcome.status != 0
    assert complaint in outcome.complained
    assert outcome.visible == []


def test_a_server_runs_products_of_integers_for_every_task(dynamic: Path) -> None:
    picture = (ROOT / "models/pretrained/vit-digits/example.png").read_bytes()
    with (
        served(dynamic, *(f"--set=tiny-{kind}.precision=int8-dynamic" for kind in KINDS)) as running,
        Client(running.target) as client,
    ):
        models = [model for model in client.models() if not model.name.endswith(".raw")]
        assert {(model.state, model.precision) for model in models} == {("READY", "int8-dynamic")}
        assert len(client.fill_mask(["The [MASK] raises."], top_k=3)[0].masks[0].candidates) == 3
        assert len(client.classify_text(["A list is mutable."])[0].classes) == 3
        assert len(client.embed(["A list is mutable."])[0]) == 64
        for model in ("tiny-vit", "tiny-mixer"):
            assert len(client.classify_image([picture], model=model)[0].classes) > 0
        parts = list(client.generate("def ", max_tokens=5, temperature=0))
        assert parts[-1].usage.completion_tokens == 5


@pytest.fixture(scope="module")
def alone_and_together(dynamic: Path) -> Iterator[tuple[Client, Client]]:
    """A server that runs each input alone, and one that takes several into a batch; both multiply integers."""
    integers = "--set=*.precision=int8-dynamic"
    one, many = ("--set=*.max_batch_size=1", "--set=*.slots=1"), ("--set=*.max_delay_seconds=0.2",)
    with (
        served(dynamic, integers, *one) as alone,
        served(dynamic, integers, *many) as together,
        Client(alone.target) as first,
        Client(together.target) as second,
    ):
        yield first, second


def logits(results: Sequence[pb.Classification]) -> list[list[float]]:
    return [[each.score for each in sorted(result.classes, key=lambda c: c.class_id)] for result in results]


def picture_file(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_a_result_does_not_depend_on_the_batch(alone_and_together: tuple[Client, Client]) -> None:
    """The padding and the inputs beside it have no share in the scales of an input."""
    alone, together = alone_and_together
    texts = ["A list.", "raise ValueError " * 6, "The caller may catch an exception, or not.", "! " * 12]
    np.testing.assert_allclose(together.embed(texts), alone.embed(texts), atol=1e-3)
    classified = [logits(each.classify_text(texts, function_to_apply="none")) for each in alone_and_together]
    np.testing.assert_allclose(*classified, atol=1e-2)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pictures = [picture_file(pixels) for pixels in (noise, noise // 16, 0 * noise, 255 - noise // 8)]
    for model in ("tiny-vit", "tiny-mixer"):
        classified = [
            logits(each.classify_image(pictures, model=model, top_k=10, function_to_apply="none"))
            for each in alone_and_together
        ]
        np.testing.assert_allclose(*classified, atol=1e-2)


def test_a_continuation_does_not_depend_on_the_others(alone_and_together: tuple[Client, Client]) -> None:
    prompts = ["def ", "import numpy as np " * 3, "x", "class Error(ValueError):"]

    def continuations(client: Client) -> list[list[int]]:
        def tokens(prompt: str) -> list[int]:
            return [token for part in client.generate(prompt, max_tokens=12, temperature=0) for token in part.token_ids]

        with ThreadPoolExecutor(len(prompts)) as callers:
            return list(callers.map(tokens, prompts))

    alone, together = map(continuations, alone_and_together)
    assert together == alone
    assert [len(tokens) for tokens in alone] == [12] * len(prompts)


def test_openvino_is_not_given_such_a_graph(dynamic: Path) -> None:
    artifact = read_artifact(dynamic / "tiny-vit/1")
    expected = "found provider openvino and a graph in int8-dynamic, expected cpu: OpenVINO runs graphs in fp32"
    with pytest.raises(ProviderUnavailable, match=expected):
        open_unchecked(artifact, ProviderChoice("openvino"), Settings(), graph_precision="int8-dynamic")
