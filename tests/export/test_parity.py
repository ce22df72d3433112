"""A graph that differs from its model is refused: a weight, an activation, a mask, a cache."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export.artifact import graph_writer
from export.errors import ExportError, ParityError
from export.graph.recipes import GptRecipe, Recipe, recipe_for
from export.graph.runtime import Runtime
from export.inputs.text import sentence_model
from export.parity import cases, comparison, decode
from export.parity.references import References, reference_case, seeded_cases
from export.precisions import PRECISIONS
from models import Gpt
from models.checkpoints import load

FP32, FP16 = PRECISIONS["fp32"], PRECISIONS["fp16"]
LONGEST = 64


def prove(path: Path, recipe: Recipe) -> comparison.Parity:
    """The comparison at the end of every export."""
    return graph_writer.prove(path, FP32, recipe, references(recipe))


def references(recipe: Recipe) -> References:
    """What PyTorch computes of the inputs that every graph is compared on."""
    return References(
        cases=seeded_cases(recipe, LONGEST),
        generation=reference_case(recipe, decode.inputs_for(recipe)) if isinstance(recipe, GptRecipe) else None,
    )


def recipe_of(directory: Path) -> Recipe:
    return recipe_for(load(directory, pooling=sentence_model.read(directory).poolings))


def tampered(path: Path, to: Path, change: Callable[[onnx.GraphProto], None]) -> Path:
    """A copy of a graph with something changed."""
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, to / "cpu.onnx")
    return to / "cpu.onnx"


def nodes(graph: onnx.GraphProto, kind: str) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type == kind]


@pytest.mark.parametrize("name", ["bert", "classifier", "embedder", "gpt", "vit", "mixer"])
def test_an_exported_graph_equals_its_model(
    name: str, artifacts: Callable[[str], Path], checkpoints: dict[str, Path]
) -> None:
    proven = prove(artifacts(name) / "cpu.onnx", recipe_of(checkpoints[name]))
    assert proven.maximum < 1e-5


@pytest.mark.parametrize("name", ["bert", "gpt", "vit", "mixer"])
def test_one_broken_weight_is_caught(
    name: str, artifacts: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        matrix = next(tensor for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] == 64)
        array = numpy_helper.to_array(matrix).copy()
        array[3, 5] += 0.5
        matrix.CopyFrom(numpy_helper.from_array(array, matrix.name))

    path = tampered(artifacts(name) / "cpu.onnx", tmp_path, change)
    with pytest.raises(
        ParityError, match=r"logits of .* at \[.*\]: found .*, PyTorch has .*; expected maximum ≤ 0.0001"
    ):
        prove(path, recipe_of(checkpoints[name]))


def test_a_tanh_gelu_differs_from_an_erf_gelu(artifacts: Callable[[str], Path], checkpoints: dict[str, Path]) -> None:
    model = load(checkpoints["gpt"])
    other = Gpt(replace(model.config, activation="gelu")).eval()
    other.load_state_dict(model.state_dict())
    with pytest.raises(ParityError):
        prove(artifacts("gpt") / "cpu.onnx", recipe_for(other))


def test_an_ignored_mask_is_caught(
    artifacts: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "MultiHeadAttention"):
            del node.input[3:]

    path = tampered(artifacts("bert") / "cpu.onnx", tmp_path, change)
    with pytest.raises(ParityError):
        prove(path, recipe_of(checkpoints["bert"]))


def test_attention_without_the_causal_mask_is_caught(
    artifacts: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        for node in nodes(graph, "GroupQueryAttention"):
            node.attribute.append(onnx.helper.make_attribute("causal", 0))

    path = tampered(artifacts("gpt") / "cpu.onnx", tmp_path, change)
    with pytest.raises(ParityError):
        prove(path, recipe_of(checkpoints["gpt"]))


def test_a_wrong_cache_is_caught_by_decoding_step_by_step(
    artifacts: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """Reading a whole text at once does not show it: there is nothing in the cache."""

    def change(graph: onnx.GraphProto) -> None:
        node = nodes(graph, "GroupQueryAttention")[0]
        node.input[3], node.input[4] = node.input[4], node.input[3]  # past keys and past values

    path = tampered(artifacts("gpt") / "cpu.onnx", tmp_path, change)
    recipe = recipe_of(checkpoints["gpt"])
    at_once = comparison.measure(Runtime(path), recipe, FP32, seeded_cases(recipe, LONGEST))
    assert comparison.judge(at_once, FP32).maximum < 1e-5
    with pytest.raises(ParityError, match="of a prompt|after prompts"):
        prove(path, recipe)


def test_wrong_top_tokens_are_caught(
    artifacts: Callable[[str], Path], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def change(graph: onnx.GraphProto) -> None:
        (top,) = nodes(graph, "TopK")
        kept = [attribute for attribute in top.attribute if attribute.name != "largest"]
        del top.attribute[:]
        top.attribute.extend([*kept, onnx.helper.make_attribute("largest", 0)])

    path = tampered(artifacts("bert") / "cpu.onnx", tmp_path, change)
    with pytest.raises(ParityError, match="top_scores"):
        prove(path, recipe_of(checkpoints["bert"]))


def test_a_graph_with_another_signature_is_refused(
    artifacts: Callable[[str], Path], checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(ExportError, match="the graph's inputs, names: found"):
        prove(artifacts("classifier") / "cpu.onnx", recipe_of(checkpoints["bert"]))


def test_the_difference_says_where_and_by_how_much() -> None:
    reference = np.zeros((2, 3), np.float32)
    found = reference.copy()
    found[1, 2] = 0.5
    worst = comparison.difference("logits", found, reference, 2.0)
    assert (worst.position, worst.found, worst.expected, worst.maximum) == ((1, 2), 0.5, 0.0, 0.25)


def test_nan_is_never_within_tolerance() -> None:
    found = np.array([0.0, np.nan, 1.0], np.float32)
    with pytest.raises(ParityError, match=r"at \[1\]: found nan"):
        comparison.difference("logits", found, np.zeros(3, np.float32), 1.0)


def test_half_precision_is_judged_by_its_mean_error() -> None:
    outlier = comparison.Difference("logits", maximum=0.5, root_mean_square=0.01, position=(0,), found=1, expected=0)
    assert comparison.judge([outlier], FP16).maximum == 0.5
    with pytest.raises(ParityError):
        comparison.judge([outlier], FP32)


def test_cases_are_ragged_seeded_and_reach_both_extremes(checkpoints: dict[str, Path]) -> None:
    recipe = recipe_of(checkpoints["bert"])
    tried, again = (cases.inputs_for(recipe, LONGEST) for _ in range(2))
    for one, other in zip(tried, again, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    shapes = [inputs["input_ids"].shape for inputs in tried]
    assert {rows for rows, _ in shapes} >= {1, 8}
    assert {length for _, length in shapes} >= {1, LONGEST}
    assert any(len(set(inputs["lengths"].tolist())) > 1 for inputs in tried)
    chosen = [np.bincount(inputs["selected"] // inputs["input_ids"].shape[1]) for inputs in tried]
    assert any(counts.max() > 1 for counts in chosen)  # several masks in one text
    assert any((counts > 0).sum() > 1 for counts in chosen)  # masks in several texts


def test_a_failed_comparison_leaves_nothing_behind(
    export, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ParityError("logits at [0, 3]: found 1, PyTorch has 2")

    monkeypatch.setattr(graph_writer, "prove", fail)
    outcome = export(checkpoints["mixer"], "--target", "cpu")
    assert (outcome.status, outcome.visible) == (1, [])
    assert outcome.complained == "error: logits at [0, 3]: found 1, PyTorch has 2\n"
    assert not list(outcome.artifacts.iterdir())


def test_the_reference_is_the_model_as_it_is_written(checkpoints: dict[str, Path]) -> None:
    """Tracing swaps the attention; what PyTorch says must not depend on whether that happened before."""
    model = load(checkpoints["vit"])
    pixels = torch.randn(2, 3, 32, 32)
    before = model(pixels)
    recipe = recipe_for(model)
    recipe({"pixel_values": pixels})
    assert torch.equal(model(pixels), before)
