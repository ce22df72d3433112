"""Models of sentence-transformers, saved by the library or as its earlier versions did: read as it reads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from torch import nn

from export.sources import lookup
from server.tasks.embed import normalised
from tests.export.saved_models import LIBRARY_SETTINGS, SETTINGS, change, computed, loaded, write

TEXTS = ["a list", "The statement RAISES an exception, and the caller may catch it.", "", "Attention [SEP] " * 40]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@pytest.fixture
def as_the_library(tmp_path: Path) -> Callable[[Path], None]:
    """Assert that the vectors of a directory are those that sentence-transformers computes."""

    def check(directory: Path) -> None:
        expected = SentenceTransformer(str(directory), device="cpu").encode(TEXTS)
        found, manifest = computed(directory, TEXTS, scratch=tmp_path / "artifact")
        assert found.shape[1] == manifest.embedding_width
        np.testing.assert_allclose(normalised(found) if manifest.normalise else found, expected, atol=1e-5)

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


def test_a_roberta_whose_text_holds_the_padding_token(variant_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """That token has no number among the positions, and is pooled like any other."""
    encoder = Transformer(str(variant_checkpoints["roberta-embedder"]))
    poolings = Pooling(64, MODES)
    SentenceTransformer(modules=[encoder, poolings], device="cpu").save(str(tmp_path / "model"))
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["a<pad> list", "a", "a list<pad>"])
    found, _ = computed(tmp_path / "model", ["a<pad> list", "a", "a list<pad>"], scratch=tmp_path / "artifact")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_truncated_vectors(saved: Callable[..., Path], as_the_library: Callable[[Path], None]) -> None:
    """The library cuts vectors after it has scaled them."""
    directory = saved(Pooling(64, "mean"), Normalize())
    change(directory / LIBRARY_SETTINGS, truncate_dim=10)
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
    kept = ("modules.json", LIBRARY_SETTINGS, "README.md")
    for path in [path for path in directory.iterdir() if path.is_file() and path.name not in kept]:
        shutil.move(path, directory / "0_Transformer")
    dense = directory / "2_Dense"
    layer = Dense.load(str(dense))
    torch.save(layer.state_dict(), dense / "pytorch_model.bin")
    (dense / "model.safetensors").unlink()
    as_the_library(directory)
    before = lookup.resolve(str(directory)).digest()
    torch.save({name: tensor + 1 for name, tensor in layer.state_dict().items()}, dense / "pytorch_model.bin")
    assert lookup.resolve(str(directory)).digest() != before


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
def test_the_length_in_one_of_several_files_replaces_the_tokenizers(
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
    assert loaded(directory).manifest.text.max_length == longest


@pytest.mark.parametrize(
    "settings",
    [
        {"max_seq_length": 20, "tokenizer_args": {"model_max_length": 9}},
        {"max_seq_length": 20, "processing_kwargs": {"text": {"max_length": 7}}},
        {"max_seq_length": None},
        {"max_seq_length": 20, "processor_kwargs": {"truncation_side": "left"}},
    ],
)
def test_lengths_and_sides_as_arguments_of_the_tokenizer(
    settings: dict[str, object], saved: Callable[..., Path], as_the_library: Callable[[Path], None]
) -> None:
    directory = saved(Pooling(64, "mean"))
    change(directory / SETTINGS, **settings)
    as_the_library(directory)


def test_no_length_is_beyond_the_models_positions(saved: Callable[..., Path]) -> None:
    directory = saved(Pooling(64, "mean"))
    change(directory / SETTINGS, max_seq_length=512)
    assert loaded(directory).manifest.text.max_length == 64


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
    change(directory / LIBRARY_SETTINGS, prompts={"q": "a set of ", "p": None}, default_prompt_name="q")
    as_the_library(directory)
