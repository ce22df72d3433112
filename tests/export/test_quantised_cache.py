"""Keys and values in int8: the graphs, their scales and their cost, what is refused, and a server that runs them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
import transformers

from export.__main__ import main
from export.artifact import graph_writer
from export.graph.quantise_cache import MARGIN, largest_values
from export.precisions import PRECISIONS
from protos.manifest import read_manifest
from tests.checkpoints import write_gpt2_tokenizer
from tests.export.saved_models import loaded

BESIDES = ("fp32", "int8-weights", "int4-weights", "int8-dynamic")
QUANTISED = tuple(f"{precision}+int8-kv" for precision in BESIDES)
TARGETS = ",".join(f"cpu={precision}" for precision in (*BESIDES, *QUANTISED))


@pytest.fixture(scope="module")
def artifact(exported_together: Callable[[str, Sequence[str], str], Path]) -> Path:
    """A GPT with and without int8 keys and values, in each precision of its weights."""
    return exported_together("quantised-cache", ["gpt"], TARGETS) / "tiny-gpt/1"


def scales_of(graph: onnx_ir.Graph, kind: str) -> list[np.ndarray]:
    """The scales (1, heads, 1, head_width) of each layer's keys or values."""
    return [graph.initializers[f"{kind}_scale.{layer}"].const_value.numpy() for layer in range(2)]


@pytest.mark.parametrize("precision", QUANTISED)
def test_the_cache_is_in_int8_and_everything_else_as_without(precision: str, artifact: Path) -> None:
    whole, quantised = read_manifest(artifact).graphs[BESIDES.index(precision.partition("+")[0]) :: 4]
    assert (quantised.precision, quantised.file) == (precision, f"cpu-{precision}.onnx")
    assert quantised.head_precision == (whole.head_precision or "fp32")
    for ours, theirs in zip((*quantised.inputs, *quantised.outputs), (*whole.inputs, *whole.outputs), strict=True):
        cached = ours.name.startswith(("past_", "present_"))
        assert (ours.name, list(ours.shape)) == (theirs.name, list(theirs.shape))
        assert (ours.datatype, theirs.datatype) == ("INT8", "FP32") or (not cached and ours.datatype == theirs.datatype)
    graphs = [onnx_ir.load(artifact / graph.file).graph for graph in (whole, quantised)]
    assert [[node.op_type for node in graph] for graph in graphs][0] == [node.op_type for node in graphs[1]]
    assert {scale.shape for kind in ("key", "value") for scale in scales_of(graphs[1], kind)} == {(1, 4, 1, 16)}


@pytest.mark.parametrize(("precision", "bound"), [*zip(QUANTISED, (0.02, 0.1, 0.5, 0.1), strict=True)])
def test_the_cost_is_measured_over_chunks_and_steps(precision: str, bound: float, artifact: Path) -> None:
    graph = next(graph for graph in read_manifest(artifact).graphs if graph.precision == precision)
    assert graph.parity.measure == "root-mean-square"
    assert 1e-4 < graph.parity.root_mean_square < bound
    assert graph.parity.tolerance == (0.5 if "int4" in precision else 0.1)


def test_verify_runs_every_graph(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(artifact)]) == 0
    assert [graph["precision"] for graph in json.loads(capsys.readouterr().out)["graphs"]] == [*BESIDES, *QUANTISED]


def test_the_scales_are_the_largest_keys_and_values_of_the_probes_with_a_margin(
    artifact: Path, checkpoints: dict[str, Path]
) -> None:
    reference = transformers.GPT2LMHeadModel.from_pretrained(checkpoints["gpt"]).eval()
    model = loaded(checkpoints["gpt"])
    tokens = [token for text in model.texts for token in text]
    count = -(-(len(tokens) + 2048) // 64) * 64
    tokens += np.random.default_rng(0).integers(0, 400, count - len(tokens)).tolist()
    largest = np.zeros((2, 2, 4, 16), np.float32)  # layers, keys and values, heads, head_width
    with torch.inference_mode():
        for row in torch.tensor(tokens).view(-1, 1, 64):
            cache = reference(row, use_cache=True).past_key_values
            for layer, (keys, values, *_) in enumerate(cache):
                for number, found in enumerate((keys, values)):
                    largest[layer, number] = np.maximum(largest[layer, number], found.abs().amax((0, 2)).numpy())
    graph = onnx_ir.load(artifact / "cpu-fp32+int8-kv.onnx").graph
    for layer in range(2):
        for number, kind in enumerate(("key", "value")):
            expected = largest[layer, number] * MARGIN / 127
            np.testing.assert_allclose(scales_of(graph, kind)[layer][0, :, 0], expected, rtol=1e-4)


def test_the_same_source_gives_the_same_bytes(artifact: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = loaded(checkpoints["gpt"])
    largest = largest_values(model.recipe, model.texts)
    for precision in QUANTISED:
        graph_writer.quantize_saved(artifact / "cpu.onnx", tmp_path / "again.onnx", PRECISIONS[precision], largest)
        assert (tmp_path / "again.onnx").read_bytes() == (artifact / f"cpu-{precision}.onnx").read_bytes()


@pytest.mark.parametrize(("width", "heads", "padded"), [(24, 4, 8), (80, 4, 24)])
def test_heads_of_any_width_are_quantised(
    width: int, heads: int, padded: int, export: Callable, tmp_path: Path
) -> None:
    """Heads are padded to a multiple of 8: 6 → 8, 20 → 24."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=400, n_positions=48, n_embd=width, n_layer=2, n_head=heads)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    write_gpt2_tokenizer(tmp_path / "gpt")
    outcome = export(tmp_path / "gpt", "--target", "cpu=fp32+int8-kv")
    assert outcome.status == 0, outcome.complained
    (graph,) = read_manifest(outcome.artifacts / "gpt/1").graphs
    assert graph.file == "cpu.onnx"
    assert graph.parity.root_mean_square < 0.02
    scales = scales_of(onnx_ir.load(outcome.artifacts / "gpt/1/cpu.onnx").graph, "key")
    assert {scale.shape for scale in scales} == {(1, heads, 1, padded)}


@pytest.mark.parametrize(
    ("kind", "arguments", "complaint"),
    [
        ("bert", ["--target", "cpu=fp32+int8-kv"], "only models for generate keep keys and values; take cpu=fp32"),
        ("vit", ["--target", "cpu=int8-weights+int8-kv"], "keep keys and values; take cpu=int8-weights"),
        ("gpt", ["--target", "cuda=fp16+int8-kv"], "--target cuda: found 'fp16+int8-kv', expected one of fp16, fp32"),
        ("gpt", ["--target", "cpu=fp16+int8-kv"], "int8-weights+int8-kv, int4-weights+int8-kv, int8-dynamic+int8-kv"),
        ("gpt", ["--target", "cpu=int8-kv"], "--target cpu: found 'int8-kv', expected one of fp32"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: str, arguments: list[str], complaint: str, export: Callable, checkpoints: dict[str, Path]
) -> None:
    outcome = export(checkpoints[kind], *arguments)
    assert outcome.status != 0
    assert complaint in outcome.complained
    assert outcome.visible == []
