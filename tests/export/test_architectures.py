"""Checkpoints that say little or something unusual of themselves, by the command that a user types."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from google.protobuf.json_format import Parse
from safetensors.torch import load_file, save_file
from torch import nn

from export.artifact import graph_writer
from export.graph.fuse import optimize
from export.graph.recipes import DTYPES, Port, Ports, Recipe, Tensors
from export.graph.runtime import Runtime
from export.graph.trace import trace
from export.precisions import PRECISIONS
from models.mlp import ACTIVATIONS
from protos.manifest_pb2 import Manifest
from tests.checkpoints import BERT, randomise, write_bert_tokenizer, write_gpt2_tokenizer

GPT = {"vocab_size": 400, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "eos_token_id": 0}


def change_config(directory: Path, **changes: object) -> None:
    """Other values; `...` takes a key out."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def copied(source: Path, to: Path, **changes: object) -> Path:
    """A checkpoint of the user's own, with another config.json."""
    shutil.copytree(source, to)
    change_config(to, **changes)
    return to


def manifest(artifacts: Path, name: str) -> Manifest:
    return Parse((artifacts / name / "1/manifest.json").read_text("utf-8"), Manifest())


def with_tensors(directory: Path, change: Callable[[dict], dict]) -> Path:
    """Other tensors in the file of a checkpoint."""
    save_file(change(load_file(directory / "model.safetensors")), directory / "model.safetensors", {"format": "pt"})
    return directory


def gpt(directory: Path, **switches: object) -> Path:
    """A GPT-2 with settings of its own, as transformers saves it."""
    directory.mkdir()
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**GPT, **switches}))
    randomise(model).save_pretrained(directory)
    write_gpt2_tokenizer(directory)
    return directory


@pytest.mark.parametrize(
    ("kind", "task", "changes"),
    [
        ("classifier", "classify-text", {"architectures": ...}),
        ("classifier", "classify-text", {"architectures": None, "torch_dtype": "float16", "is_decoder": False}),
        ("embedder", "embed", {"architectures": []}),
        ("vit", "classify-image", {"architectures": ...}),
    ],
)
def test_task_determines_the_architecture_of_a_file_without_architectures(
    export, checkpoints: dict[str, Path], tmp_path: Path, kind: str, task: str, changes: dict[str, object]
) -> None:
    source = copied(checkpoints[kind], tmp_path / "mine", **changes)
    if kind != "embedder":  # its modules.json says it
        refused = export(source, "--target", "cpu")
        assert refused.status == 1
        assert "config.json: architectures is missing: take --task" in refused.complained
    outcome = export(source, "--target", "cpu", "--task", task)
    assert outcome.status == 0, outcome.complained
    assert manifest(outcome.artifacts, "mine").task == task
    assert "up to date" in export(source, "--target", "cpu", "--task", task).said


def test_another_task_of_the_same_file_is_another_export(export, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    source = copied(checkpoints["classifier"], tmp_path / "mine", model_type="bert")
    assert export(source, "--target", "cpu").status == 0
    outcome = export(source, "--target", "cpu", "--task", "embed")
    assert (outcome.status, outcome.visible) == (0, ["1", "2"])
    refused = export(source, "--target", "cpu", "--task", "fill-mask")
    assert refused.status == 1
    assert "model.safetensors: " in refused.complained
    assert "missing cls.predictions.bias: expected (200)" in refused.complained
    assert refused.complained.count("\n") < 12


def test_unused_tensors_are_refused_unless_they_may_be_ignored(
    export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = copied(checkpoints["classifier"], tmp_path / "mine")
    strange = {f"module.adapter.{n}": torch.ones(n + 1) for n in range(5)}
    with_tensors(source, lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()} | strange)
    refused = export(source, "--target", "cpu")
    assert (refused.status, refused.visible) == (1, [])
    assert "model.safetensors: 5 tensors are not those of Bert:" in refused.complained
    assert "left over module.adapter.0: found (1), expected no such tensor" in refused.complained
    assert (
        "and 2 more left over\n  if the model does without them, --ignore-unused leaves them out" in refused.complained
    )
    outcome = export(source, "--target", "cpu", "--ignore-unused")
    assert outcome.status == 0, outcome.complained
    assert "ignored 5 unused tensors: module.adapter.0, module.adapter.1" in outcome.said
    assert "ignore-unused" in manifest(outcome.artifacts, "mine").source.options


def test_heads_of_any_width_are_exported_for_the_cpu(export, tmp_path: Path) -> None:
    """The default targets leave CUDA out, one that is named is refused."""
    source = tmp_path / "odd"
    source.mkdir()
    config = transformers.BertConfig(**BERT | {"hidden_size": 104, "num_attention_heads": 4})
    randomise(transformers.BertForMaskedLM(config)).save_pretrained(source)
    write_bert_tokenizer(source)
    for target in ("cuda", "cpu,cuda=fp32"):
        refused = export(source, "--target", target)
        assert (refused.status, refused.visible) == (1, [])
        assert "config.json: found heads 26 wide (104 / 4), expected a multiple of 8: the fused" in refused.complained
    outcome = export(source)
    assert outcome.status == 0, outcome.complained
    assert "cuda=fp16 left out: config.json: found heads 26 wide" in outcome.said
    assert [each.target for each in manifest(outcome.artifacts, "odd").graphs] == ["cpu"]
    assert "up to date" in export(source).said


@pytest.mark.parametrize("width", [3, 26])
def test_generation_over_the_cache_with_heads_of_any_width(export, tmp_path: Path, width: int) -> None:
    """The export compares prompts in chunks and steps over the cache; here it is compared with transformers."""
    source = gpt(tmp_path / "odd", n_embd=4 * width)
    outcome = export(source, "--target", "cpu")
    assert outcome.status == 0, outcome.complained
    found = manifest(outcome.artifacts, "odd")
    assert found.cache.head_width == -(-width // 8) * 8
    assert_same_logits(outcome.artifacts / "odd/1/cpu.onnx", source, found)


@pytest.mark.parametrize("precision", ["fp32", "int4-weights"])
def test_an_untied_head_in_every_precision(export, tmp_path: Path, precision: str) -> None:
    switches = {"tie_word_embeddings": False, "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True}
    source = gpt(tmp_path / "untied", **switches, activation_function="gelu_10")
    outcome = export(source, "--target", f"cpu={precision}" + (",cuda=fp16" if precision == "fp32" else ""))
    assert outcome.status == 0, outcome.complained
    if precision == "fp32":
        assert_same_logits(outcome.artifacts / "untied/1/cpu.onnx", source, manifest(outcome.artifacts, "untied"))


def assert_same_logits(path: Path, source: Path, found: Manifest) -> None:
    """A graph with a cache, asked for a whole text, beside transformers."""
    text = np.arange(20)[None] * 17 % 400
    capacity = {f"past_{part}.{n}": np.zeros((1, found.cache.heads, 20, found.cache.head_width), np.float32)
                for n in range(found.cache.layers) for part in ("key", "value")}  # fmt: skip
    inputs = {
        "input_ids": text,
        "position_ids": np.arange(20)[None],
        "lengths": np.array([20], np.int32),
        "total_sequence_length": np.array([20], np.int32),
        "selected": np.arange(20),
    }
    logits = Runtime(path).run(inputs | capacity)["logits"]
    with torch.no_grad():
        expected = transformers.GPT2LMHeadModel.from_pretrained(source).eval()(torch.from_numpy(text)).logits[0].numpy()
    assert np.abs(logits - expected).max() <= 1e-4 * expected.std()


class EveryActivation(Recipe):
    """A layer for each activation, as the blocks and heads have them; an output for each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in ACTIVATIONS)

    def inputs(self, precision: str) -> Ports:
        return {"x": Port(PRECISIONS[precision].datatype, ("batch", 64))}

    def outputs(self, precision: str) -> Ports:
        return {f"of_{name}": Port(PRECISIONS[precision].datatype, ("batch", 64)) for name in ACTIVATIONS}

    def forward(self, inputs: Tensors) -> Tensors:
        layers = zip(self.layers, ACTIVATIONS.items(), strict=True)
        return {f"of_{name}": bend(layer(inputs["x"])) for layer, (name, bend) in layers}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_activation_survives_the_export(precision: str, tmp_path: Path) -> None:
    chosen, recipe, x = PRECISIONS[precision], randomise(EveryActivation()), 10 * torch.randn(7, 64)
    with torch.no_grad():
        expected = {name: y.numpy() for name, y in recipe({"x": x}).items()}
    dtype = DTYPES[chosen.datatype]
    graph_writer.save(optimize(trace(recipe.to(dtype), precision)), tmp_path / "cpu.onnx")
    found = Runtime(tmp_path / "cpu.onnx").run({"x": x.to(dtype).numpy()})
    for name, y in expected.items():
        error = np.abs(found[name] - y).max() if precision == "fp32" else np.square(found[name] - y).mean() ** 0.5
        assert error <= chosen.tolerance * y.std(), name
