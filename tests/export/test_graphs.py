"""What every graph has in common: axes that really vary, and nothing that would keep it off CUDA."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from export.graph.fuse import FORBIDDEN, optimize
from export.graph.recipes import recipe_for
from export.graph.runtime import Runtime, with_cache
from models.checkpoints import load

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = [("classifier", "cpu")] + [
    (name, target) for name in ("bert", "embedder", "gpt", "vit", "mixer") for target in ("cpu", "cuda")
]


@pytest.mark.parametrize(("name", "target"), GRAPHS)
def test_no_node_computes_with_shapes_or_controls_the_flow(
    name: str, target: str, artifacts: Callable[[str], Path]
) -> None:
    graph = onnx.load(artifacts(name) / f"{target}.onnx").graph
    assert {node.op_type for node in graph.node}.isdisjoint(FORBIDDEN)


ENCODER = {"MultiHeadAttention": 2, "SkipLayerNormalization": 5, "BiasGelu": 2}
SPLIT_ON_CPU = ("SkipLayerNormalization", "BiasGelu")  # each into a Sum and another node, which are faster there
# Of models of two blocks: the nodes that do the work of several, and how many nodes there are in all, by target.
# fmt: off
NODES = {
    "bert":     (ENCODER, 50, 44),
    "embedder": (ENCODER, 50, 46),
    "gpt":      ({"GroupQueryAttention": 2, "SkipLayerNormalization": 5, "Gelu": 2}, 32, 33),
    "vit":      ({"MultiHeadAttention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2}, 42, 38),
    "mixer":    ({"SkipLayerNormalization": 4, "BiasGelu": 4}, 36, 30),
}
# fmt: on


@pytest.mark.parametrize("target", ["cpu", "cuda"])
@pytest.mark.parametrize("name", NODES)
def test_neighbouring_nodes_are_fused(name: str, target: str, artifacts: Callable[[str], Path]) -> None:
    graph = onnx.load(artifacts(name) / f"{target}.onnx").graph
    kinds = [node.op_type for node in graph.node]
    fused, on_cpu, on_cuda = NODES[name]
    fused = fused.copy()
    if target == "cpu" and name != "gpt":
        fused["Sum"] = sum(fused.pop(kind) for kind in SPLIT_ON_CPU)
    assert {kind: kinds.count(kind) for kind in fused} == fused
    assert len(kinds) <= (on_cpu if target == "cpu" else on_cuda)


def test_an_output_may_have_the_name_of_an_inner_value(caplog: pytest.LogCaptureFixture) -> None:
    """torch calls the words that it looks up `embedding`, which is what an embedder gives."""
    int64, fp32 = onnx_ir.TensorType(onnx_ir.DataType.INT64), onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    ids = onnx_ir.Value(name="input_ids", shape=onnx_ir.Shape(["batch", "sequence"]), type=int64)
    table = onnx_ir.tensor(np.arange(10, dtype=np.float32).reshape(5, 2), name="words")
    words = onnx_ir.Value(name="words", const_value=table, shape=onnx_ir.Shape([5, 2]), type=fp32)
    looked_up = onnx_ir.node("Gather", [words, ids])
    result = onnx_ir.node("ReduceMax", looked_up.outputs, attributes={"keepdims": 1})
    for node, shape in ((looked_up, ["batch", "sequence", 2]), (result, [1, 1, 1])):
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = "embedding", onnx_ir.Shape(shape), fp32
    graph = onnx_ir.Graph(
        [ids], result.outputs, nodes=[looked_up, result], initializers=[words], opset_imports={"": 20}
    )
    found = optimize(onnx_ir.Model(graph, ir_version=10))
    assert [value.name for value in found.graph.outputs] == ["embedding"]
    assert not caplog.records


@pytest.mark.parametrize("name", ["bert", "classifier", "embedder", "gpt"])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 64), (2, 2), (8, 1), (8, 64), (7, 33)])
def test_a_text_graph_takes_any_batch_and_any_length(
    name: str, rows: int, length: int, artifacts: Callable[[str], Path]
) -> None:
    session = onnxruntime.InferenceSession(artifacts(name) / "cpu.onnx", providers=["CPUExecutionProvider"])
    inputs = {
        "input_ids": np.ones((rows, length), np.int64),
        "position_ids": np.tile(np.arange(length), (rows, 1)),
        "lengths": np.full(rows, length, np.int32),
        "token_type_ids": np.zeros((rows, length), np.int64),
        "selected": np.arange(rows),
        "total_sequence_length": np.array([length], np.int32),
        **{
            f"past_{part}.{n}": np.zeros((rows, 4, length, 16), np.float32) for part in ("key", "value") for n in (0, 1)
        },
    }
    expected = {node.name for node in session.get_inputs()}
    found = session.run(None, {key: array for key, array in inputs.items() if key in expected})
    assert found[0].shape[0] == rows
    assert np.isfinite(found[0]).all()


def test_a_tied_matrix_is_stored_once(artifacts: Callable[[str], Path], checkpoints: dict[str, Path]) -> None:
    for name in ("bert", "gpt"):
        weights = sum(parameter.numel() * 4 for parameter in load(checkpoints[name]).parameters())
        assert (artifacts(name) / "cpu.onnx").stat().st_size < weights + 30_000


def test_padding_changes_nothing(artifacts: Callable[[str], Path], checkpoints: dict[str, Path]) -> None:
    """The same texts beside others' padding and alone, with whatever stands in the padding."""
    recipe = recipe_for(load(checkpoints["classifier"]))
    runtime = Runtime(artifacts("classifier") / "cpu.onnx")
    random = np.random.default_rng(0)
    inputs = {
        "input_ids": random.integers(0, 200, (2, 9)),
        "position_ids": np.tile(np.arange(9), (2, 1)),
        "lengths": np.array([9, 4], np.int32),
        "token_type_ids": np.zeros((2, 9), np.int64),
    }
    together = runtime.run(with_cache(recipe.inputs("fp32"), inputs))["logits"][1]
    alone = {key: array[1:2] if key == "lengths" else array[1:2, :4] for key, array in inputs.items()}
    np.testing.assert_allclose(runtime.run(alone)["logits"][0], together, atol=1e-5)
