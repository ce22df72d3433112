"""Models of sentence-transformers, saved by the library or as its earlier versions did: read as it reads them."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from torch import nn

from export import sources
from export.exporter import Job, read
from export.optimize import FORBIDDEN
from export.precisions import parse
from export.sources import Source
from server.artifact import Artifact
from server.tasks.embed import normalised
from server.tasks.text import TextEncoder
from tests.checkpoints import randomise

TEXTS = ["a list", "The statement RAISES an exception, and the caller may catch it.", ".", "Attention [SEP] " * 40]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SETTINGS = "sentence_bert_config.json"


@pytest.fixture(scope="module")
def transformer(checkpoints: dict[str, Path]) -> Transformer:
    """The encoder of every model here."""
    return Transformer(str(checkpoints["embedder"]), max_seq_length=32)


@pytest.fixture
def saved(transformer: Transformer, tmp_path: Path) -> Callable[..., Path]:
    """Save the encoder with these modules after it, all their weights random."""

    def save(*modules: nn.Module) -> Path:
        for number, module in enumerate(modules):
            randomise(module, number)
        SentenceTransformer(modules=[transformer, *modules], device="cpu").save(str(tmp_path / "model"))
        return tmp_path / "model"

    return save


def write(path: Path, contents: object) -> None:
    path.write_text(json.dumps(contents))


def change(path: Path, **changes: object) -> None:
    """Change some keys of a JSON file; None takes a key away."""
    contents = json.loads(path.read_text()) if path.is_file() else {}
    write(path, {key: value for key, value in {**contents, **changes}.items() if value is not None})


def job(source: Source) -> Job:
    """An export of which only the beginning is run."""
    return Job(source, "model", Path("unused"), parse("cpu"), digest="", options="")


def vectors(directory: Path, texts: Sequence[str], *, tmp_path: Path, prompt_name: str | None = None) -> np.ndarray:
    """What an export of the directory computes, by PyTorch, of what the server's tokenizer makes of the texts."""
    loaded = read(job(sources.resolve(str(directory))))
    (tmp_path / "artifact").mkdir(exist_ok=True)
    for name, contents in loaded.files.items():
        (tmp_path / "artifact" / name).write_bytes(contents)
    encoder = TextEncoder(Artifact(tmp_path / "artifact", loaded.manifest))
    tokens = encoder.encode(texts, prompt_name=prompt_name, truncate=True)
    lengths = np.array([len(each) for each in tokens], np.int32)
    batch = {"input_ids": np.zeros((len(texts), max(lengths)), np.int64)}
    batch["token_type_ids"] = np.zeros_like(batch["input_ids"])
    for row, each in enumerate(tokens):
        batch["input_ids"][row, : len(each)], batch["token_type_ids"][row, : len(each)] = (
            each.input_ids,
            each.token_type_ids,
        )
    batch |= {"lengths": lengths, "position_ids": np.tile(np.arange(max(lengths)), (len(texts), 1))}
    with torch.inference_mode():
        found = loaded.recipe.reference({name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    if loaded.recipe.task == "embed":
        assert found.shape[1] == loaded.manifest.embedding_width
    return normalised(found) if loaded.manifest.normalise else found


@pytest.fixture
def as_the_library(tmp_path: Path) -> Callable[[Path], None]:
    """Assert that the vectors of a directory are those that sentence-transformers computes."""

    def check(directory: Path) -> None:
        expected = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
        np.testing.assert_allclose(vectors(directory, TEXTS, tmp_path=tmp_path), expected, atol=1e-5)

    return check


# ---- poolings


@pytest.mark.parametrize("mode", [*MODES, ("mean", "cls"), tuple(reversed(MODES))])
def test_every_pooling_and_several_together(
    mode: str | tuple[str, ...], saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    as_the_library(saved(Pooling(64, mode)))


@pytest.mark.parametrize("true", [["mean"], ["lasttoken", "max"], MODES, []])
def test_the_keys_of_earlier_versions(
    true: list[str], saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    directory = saved(Pooling(64, "mean"))
    keys = {key: mode in true for key, mode in OLD_KEYS.items()}
    write(directory / "1_Pooling/config.json", {"word_embedding_dimension": 64, **keys})
    as_the_library(directory)


# ---- what follows them

LAYERS = {
    "dense": lambda: [Dense(64, 24)],
    "dense before and after a norm": lambda: [
        Dense(64, 48, activation_function=nn.GELU()),
        Normalize(),
        Dense(48, 20, bias=False, activation_function=nn.Identity()),
        Normalize(),
    ],
    "residual": lambda: [Dense(64, 64, use_residual=True), Dense(64, 32, use_residual=True), LayerNorm(32)],
}


@pytest.mark.parametrize("layers", LAYERS)
def test_layers_after_the_pooling(
    layers: str, saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    as_the_library(saved(Pooling(64, "mean"), *LAYERS[layers]()))


@pytest.mark.parametrize("name", ["ReLU", "SiLU", "Sigmoid", "Tanh", "Identity", "GELU"])
def test_activations_of_dense_layers(
    name: str, saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    as_the_library(saved(Pooling(64, "mean"), Dense(64, 16, activation_function=getattr(nn, name)())))


def test_the_first_values_alone(saved: Callable[..., Path], as_the_library: Callable[[Path], None]) -> None:
    """The library cuts vectors after it has scaled them."""
    directory = saved(Pooling(64, "mean"), Normalize())
    change(directory / "config_sentence_transformers.json", truncate_dim=10)
    as_the_library(directory)


# ---- folders


def test_the_layout_before_version_2(saved: Callable[..., Path], as_the_library: Callable[[Path], None]) -> None:
    """Old names of types, the encoder in a folder of its own, and weights that PyTorch pickled."""
    directory = saved(Pooling(64, "mean"), Dense(64, 24), Normalize())
    modules = json.loads((directory / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    modules[0]["path"] = "0_Transformer"
    write(directory / "modules.json", modules)
    (directory / "0_Transformer").mkdir()
    kept = ("modules.json", "config_sentence_transformers.json", "README.md")
    for path in [path for path in directory.iterdir() if path.is_file() and path.name not in kept]:
        shutil.move(path, directory / "0_Transformer")
    dense = directory / "2_Dense"
    layer = Dense.load(str(dense))
    torch.save(layer.state_dict(), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    as_the_library(directory)
    before = sources.resolve(str(directory)).digest()
    torch.save({name: tensor + 1 for name, tensor in layer.state_dict().items()}, dense / "pytorch_model.bin")
    assert sources.resolve(str(directory)).digest() != before


def test_an_encoder_without_modules_is_pooled_by_the_mean(
    checkpoints: dict[str, Path], tmp_path: Path, as_the_library: Callable[[Path], None]
) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoints["embedder"] / name, tmp_path)
    as_the_library(tmp_path)


# ---- texts


@pytest.mark.parametrize(
    "name", ["sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlnet_config.json"]
)
@pytest.mark.parametrize(("longest", "stated"), [(12, 64), (48, 20)])
def test_the_length_stands_in_any_of_several_files_and_replaces_the_tokenizers(
    name: str,
    longest: int,
    stated: int,
    saved: Callable[..., Path],
    as_the_library: Callable[[Path], None],
) -> None:
    directory = saved(Pooling(64, "mean"))
    (directory / SETTINGS).unlink()
    write(directory / name, {"max_seq_length": longest})
    change(directory / "tokenizer_config.json", model_max_length=stated)
    as_the_library(directory)
    assert read(job(sources.resolve(str(directory)))).manifest.text.max_length == longest


@pytest.mark.parametrize(
    "settings",
    [
        {"max_seq_length": 20, "tokenizer_args": {"model_max_length": 9}},
        {"max_seq_length": 20, "processing_kwargs": {"text": {"max_length": 7}}},
        {"max_seq_length": None},
    ],
)
def test_the_length_as_arguments_of_the_tokenizer(
    settings: dict[str, object], saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    directory = saved(Pooling(64, "mean"))
    change(directory / SETTINGS, **settings)
    as_the_library(directory)


def test_no_length_is_beyond_the_models_positions(saved: Callable[..., Path]) -> None:
    directory = saved(Pooling(64, "mean"))
    change(directory / SETTINGS, max_seq_length=512)
    assert read(job(sources.resolve(str(directory)))).manifest.text.max_length == 64


@pytest.mark.parametrize("normalizer", ["BertNormalizer", "Sequence", None])
def test_texts_are_lower_cased_as_the_library_does_it(
    normalizer: str | None, saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    directory = saved(Pooling(64, "mean"))
    change(directory / SETTINGS, do_lower_case=True)
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    cased = tokenizer["normalizer"] | {"lowercase": False}
    several = {"type": "Sequence", "normalizers": [cased, {"type": "NFC"}]}
    tokenizer["normalizer"] = {"BertNormalizer": cased, "Sequence": several, None: None}[normalizer]
    write(directory / "tokenizer.json", tokenizer)
    as_the_library(directory)


def test_the_default_prompt_of_a_saved_model(
    saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    directory = saved(Pooling(64, "mean"))
    change(
        directory / "config_sentence_transformers.json", prompts={"q": "a set of ", "p": None}, default_prompt_name="q"
    )
    as_the_library(directory)


# ---- graphs


def test_a_graph_of_all_poolings_and_layers(
    saved: Callable[..., Path], export: Callable[..., object], tmp_path: Path
) -> None:
    """Proven by the export itself, in fp32 and fp16; and no node decides or looks at shapes."""
    directory = saved(
        Pooling(64, MODES), *LAYERS["dense before and after a norm"]()[1:2], Dense(384, 32), LayerNorm(32)
    )
    assert export(directory).status == 0
    for target in ("cpu", "cuda"):
        graph = onnx.load(tmp_path / "artifacts/model/1" / f"{target}.onnx").graph
        assert {node.op_type for node in graph.node}.isdisjoint(FORBIDDEN)
