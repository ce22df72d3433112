"""Settings of config.json that change what is computed, each as transformers computes it."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    DeiTConfig,
    DeiTForImageClassification,
    DistilBertForMaskedLM,
    GPT2LMHeadModel,
    PreTrainedModel,
    RobertaForMaskedLM,
    ViTForImageClassification,
)
from transformers.activations import ACT2FN

from models.checkpoints import CheckpointError, load
from models.mlp import ACTIVATIONS
from tests.models.parity import (
    AssertParity,
    Saved,
    batch_of_roberta,
    run_bert,
    small_bert,
    small_distilbert,
    small_gpt2,
    small_roberta,
    small_vit,
)

TEXT = torch.arange(120).reshape(3, 40) * 7 % 500

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_that_of_transformers(name: str) -> None:
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([0.0, -0.0, 1e-6, -1e-6])])
    torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), atol=2e-6, rtol=2e-6)


def test_every_activation_without_weights_is_supported() -> None:
    assert ACT2FN.keys() - ACTIVATIONS.keys() <= {"prelu", "xielu"}


@pytest.mark.parametrize(
    "switches",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"tie_word_embeddings": False},
        {"activation_function": "quick_gelu", "n_inner": 100},
        {"n_head": 5, "n_embd": 65},
    ],
    ids=lambda switches: ",".join(switches),
)
def test_gpt2(switches: dict[str, object], saved: Saved, assert_parity: AssertParity) -> None:
    reference = GPT2LMHeadModel(small_gpt2(**switches))
    assert_parity(load(saved(reference))(TEXT), reference(TEXT).logits)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertForMaskedLM, small_bert),
        (RobertaForMaskedLM, small_roberta),
        (DistilBertForMaskedLM, small_distilbert),
    ],
)
def test_an_untied_masked_language_head(
    kind: type[PreTrainedModel], config: Callable, saved: Saved, assert_parity: AssertParity
) -> None:
    reference, texts = kind(config(tie_word_embeddings=False)), batch_of_roberta(0)
    real = texts["attention_mask"].bool()
    assert_parity(run_bert(load(saved(reference)), texts)[real], reference(**texts).logits[real])


@pytest.mark.parametrize(
    ("kind", "config", "head"),
    [(BertForMaskedLM, small_bert, "cls.predictions."), (RobertaForMaskedLM, small_roberta, "lm_head.")],
)
@pytest.mark.parametrize("shared", [True, False])
def test_an_untied_head_without_a_bias_of_its_own(
    shared: bool, kind: type[PreTrainedModel], config: Callable, head: str, saved: Saved, assert_parity: AssertParity
) -> None:
    """transformers 4 saves the bias under its shared name only; transformers 5 does not read it from there."""
    directory, texts = saved(kind(config(tie_word_embeddings=False))), batch_of_roberta(0)
    tensors = load_file(directory / "model.safetensors")
    del tensors[head + OWN_BIAS]
    if not shared:
        tensors.pop(head + SHARED_BIAS, None)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    reference = kind.from_pretrained(directory).eval()
    real = texts["attention_mask"].bool()
    assert_parity(run_bert(load(directory), texts)[real], reference(**texts).logits[real])
    del tensors[head + OWN_WEIGHT]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{head}{OWN_WEIGHT}"):
        load(directory)


def test_matrices_that_should_be_tied_and_differ_are_left_untied(saved: Saved, assert_parity: AssertParity) -> None:
    """As transformers leaves them, whatever config.json says."""
    directory = saved(GPT2LMHeadModel(small_gpt2()))
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, "lm_head.weight": torch.randn(500, 64)}, directory / "model.safetensors", {"format": "pt"})
    reference = GPT2LMHeadModel.from_pretrained(directory).eval()
    assert_parity(load(directory)(TEXT), reference(TEXT).logits)


OWN_WEIGHT, OWN_BIAS, SHARED_BIAS = "decoder.weight", "decoder.bias", "bias"


@pytest.mark.parametrize(
    "own",
    [(OWN_WEIGHT,), (OWN_BIAS,), (OWN_WEIGHT, OWN_BIAS), (SHARED_BIAS, OWN_BIAS), (OWN_WEIGHT, SHARED_BIAS, OWN_BIAS)],
)
@pytest.mark.parametrize(
    ("kind", "config", "head"),
    [(BertForMaskedLM, small_bert, "cls.predictions."), (RobertaForMaskedLM, small_roberta, "lm_head.")],
)
def test_the_matrix_and_the_bias_of_a_head_are_tied_independently(
    own: tuple[str, ...],
    kind: type[PreTrainedModel],
    config: Callable,
    head: str,
    saved: Saved,
    assert_parity: AssertParity,
) -> None:
    """The file has some of the head's own tensors, or its shared bias is under the other name only."""
    directory, texts = saved(kind(config())), batch_of_roberta(0)
    tensors = load_file(directory / "model.safetensors")
    words = tensors[next(name for name in tensors if name.endswith("word_embeddings.weight"))]
    if OWN_BIAS in own and SHARED_BIAS not in own:
        del tensors[head + SHARED_BIAS]
    for name in own:
        tensors[head + name] = torch.randn(words.shape if name == OWN_WEIGHT else len(words))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    reference = kind.from_pretrained(directory).eval()
    real = texts["attention_mask"].bool()
    assert_parity(run_bert(load(directory), texts)[real], reference(**texts).logits[real])


def test_leftovers_of_a_language_head_are_no_part_of_a_classifier(saved: Saved, assert_parity: AssertParity) -> None:
    directory, texts = saved(BertForSequenceClassification(small_bert())), batch_of_roberta(0)
    tensors = load_file(directory / "model.safetensors")
    leftovers = {"cls.predictions.decoder.weight": torch.randn(500, 64), "cls.predictions.bias": torch.randn(500)}
    save_file({**tensors, **leftovers}, directory / "model.safetensors", {"format": "pt"})
    reference = BertForSequenceClassification.from_pretrained(directory).eval()
    assert_parity(run_bert(load(directory), texts), reference(**texts).logits)


def test_robertas_head_has_an_activation_of_its_own(saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = RobertaForMaskedLM(small_roberta(hidden_act="silu")), batch_of_roberta(0)
    real = texts["attention_mask"].bool()
    assert_parity(run_bert(load(saved(reference)), texts)[real], reference(**texts).logits[real])


@pytest.mark.parametrize("kind", [ViTForImageClassification, DeiTForImageClassification])
def test_queries_keys_and_values_without_biases(
    kind: type[PreTrainedModel], saved: Saved, assert_parity: AssertParity
) -> None:
    config = small_vit(qkv_bias=False)
    reference = kind(config if kind is ViTForImageClassification else DeiTConfig(**config.to_dict()))
    images = torch.randn(3, 3, 32, 32)
    assert_parity(load(saved(reference))(images), reference(images).logits)
