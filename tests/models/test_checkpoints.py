"""Published checkpoints: old names, missing prefixes, tensors that are stored twice, and tensors that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    ViTForImageClassification,
)

from models import AttentionOnly, Bert, Gpt, Mixer, Vit
from models.checkpoints import (
    CheckpointError,
    fitted,
    load,
    published,
    published_config,
    save,
)
from models.config import (
    BERT_PRESETS,
    GPT_PRESETS,
    MIXER_PRESETS,
    VIT_PRESETS,
    DenseLayer,
    NormaliseLayer,
    NormLayer,
)

Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]
MASKED, GPT, VIT, MIXER = (presets["tiny"] for presets in (BERT_PRESETS, GPT_PRESETS, VIT_PRESETS, MIXER_PRESETS))
CLASSIFIER, ENCODER = replace(MASKED, head="classifier", classes=3), replace(MASKED, head="pooling")


def assert_same(ours: nn.Module, expected: nn.Module) -> None:
    assert ours.config == expected.config
    assert ours.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


# The way there and back


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Bert, MASKED),
        (Bert, CLASSIFIER),
        (Gpt, replace(GPT, mlp_width=96, activation="relu", norm_epsilon=1e-3)),
        (Gpt, replace(GPT, tied_head=False, scale_by_width=False, scale_by_layer=True)),
        (Bert, replace(MASKED, tied_head=False)),
        (Vit, replace(VIT, qkv_bias=False)),
        (Vit, replace(VIT, channels=1, image_size=24)),
        (Mixer, replace(MIXER, channels=1, token_mlp_width=37)),
    ],
)
def test_a_saved_model_is_loaded(
    kind: type[nn.Module], config: Any, randomised: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = randomised(kind(config))
    save(tmp_path, published_config(model), published(model))
    loaded = load(tmp_path)
    assert_same(loaded, model)
    assert not loaded.training


@pytest.mark.parametrize("pooling", [("mean",), ("max", "first-token"), "pooler"])
def test_encoders_come_back_with_the_pooling_and_the_layers_that_the_caller_names(
    pooling: str | tuple[str, ...], randomised: Callable[[nn.Module], nn.Module]
) -> None:
    layers = (NormLayer(), DenseLayer(width=32), DenseLayer(width=48, residual=True, bias=False), NormaliseLayer())
    head = {"head": "pooler"} if pooling == "pooler" else {"head": "pooling", "poolings": pooling}
    model = randomised(Bert(replace(MASKED, **head, vector_layers=layers)))
    assert_same(load((published_config(model), published(model)), pooling=pooling, vector_layers=layers), model)


@pytest.mark.parametrize(
    ("kind", "config", "reference"),
    [
        (Bert, MASKED, BertForMaskedLM),
        (Bert, CLASSIFIER, BertForSequenceClassification),
        (Bert, replace(MASKED, head="pooler"), BertModel),
        (Gpt, GPT, GPT2LMHeadModel),
        (Vit, VIT, ViTForImageClassification),
    ],
)
def test_transformers_loads_a_saved_model(
    kind: type[nn.Module], config: Any, reference: Any, checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    saved_config, tensors = checkpoint(kind, config)
    save(tmp_path, {**saved_config, "bos_token_id": 0, "eos_token_id": 0}, tensors)
    model, about = reference.from_pretrained(tmp_path, output_loading_info=True)
    assert about == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_half_precision_becomes_single(checkpoint: Callable[..., Checkpoint]) -> None:
    config, tensors = checkpoint(Gpt, GPT)
    halved = {name: tensor.half() for name, tensor in tensors.items()}
    for name, tensor in published(load((config, halved))).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halved[name].float())


def test_a_loaded_model_keeps_its_weights_when_the_file_is_gone(
    checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    config, tensors = checkpoint(Vit, VIT)
    save(tmp_path, config, tensors)
    model = load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(published(model)["classifier.weight"], tensors["classifier.weight"])


def test_an_attention_only_transformer_has_no_published_layout() -> None:
    with pytest.raises(CheckpointError, match=r"mlp_width=0.* has no published layout"):
        published(AttentionOnly(GPT))


# The spellings of files


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    spelled = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    return {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in spelled.items()}


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("bert.").removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"bert.{name}": tensor for name, tensor in tensors.items()}


def with_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    masks = {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 64, 64).tril() for n in range(2)}
    return {**tensors, **masks, **{f"transformer.h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(2)}}


def with_position_ids(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "bert.embeddings.position_ids": torch.arange(64)[None]}


def with_copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    words, bias = tensors["bert.embeddings.word_embeddings.weight"], tensors["cls.predictions.bias"]
    return {**tensors, "cls.predictions.decoder.weight": words, "cls.predictions.decoder.bias": bias}


def with_copies_alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    copied = with_copies(tensors)
    del copied["bert.embeddings.word_embeddings.weight"], copied["cls.predictions.bias"]
    return copied


def with_next_sentence_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    layers = {"bert.pooler.dense": (64, 64), "cls.seq_relationship": (2, 64)}
    weights = {f"{name}.weight": torch.zeros(shape) for name, shape in layers.items()}
    return {**tensors, **weights, **{f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}}


def with_tied_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}


@pytest.mark.parametrize(
    ("kind", "config", "respelled"),
    [
        (Bert, MASKED, old_names),
        (Bert, MASKED, without_prefix),
        (Bert, MASKED, with_copies),
        (Bert, MASKED, with_copies_alone),
        (Bert, MASKED, with_next_sentence_head),
        (Bert, MASKED, with_position_ids),
        (Bert, MASKED, lambda tensors: without_prefix(old_names(with_position_ids(tensors)))),
        (Bert, ENCODER, with_prefix),
        (Bert, ENCODER, old_names),
        (Gpt, GPT, without_prefix),
        (Gpt, GPT, with_tied_head),
        (Gpt, GPT, with_masks),
        (Gpt, GPT, lambda tensors: without_prefix(with_masks(tensors))),
    ],
)
def test_old_names_load_the_same_model(
    kind: type[nn.Module], config: Any, respelled: Callable[..., Any], checkpoint: Callable[..., Checkpoint]
) -> None:
    saved_config, tensors = checkpoint(kind, config)
    pooling = "mean" if config is ENCODER else None
    if respelled is not with_copies_alone:
        assert respelled(tensors).keys() != tensors.keys()
    assert_same(
        load((saved_config, respelled(tensors)), pooling=pooling), load((saved_config, tensors), pooling=pooling)
    )


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "_orig_mod.module.model."])
@pytest.mark.parametrize(
    ("kind", "config"), [(Bert, CLASSIFIER), (Bert, ENCODER), (Gpt, GPT), (Vit, VIT), (Mixer, MIXER)]
)
def test_the_names_of_wrappers_are_removed(
    kind: type[nn.Module], config: Any, wrapper: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    saved_config, tensors = checkpoint(kind, config)
    pooling = "mean" if config is ENCODER else None
    wrapped = {wrapper + name: tensor for name, tensor in tensors.items()}
    expected = load((saved_config, tensors), pooling=pooling)
    assert_same(load((saved_config, wrapped), pooling=pooling), expected)
    assert_same(load((saved_config, wrapped | {"loss_fct.weight": torch.ones(3)}), pooling=pooling), expected)


def test_wrapped_parts_are_found(checkpoint: Callable[..., Checkpoint]) -> None:
    config, tensors = checkpoint(Bert, CLASSIFIER)
    wrapped = {name.replace(".layer.1.", ".layer.1._orig_mod."): tensor for name, tensor in tensors.items()}
    assert wrapped.keys() != tensors.keys()
    assert_same(load((config, wrapped)), load((config, tensors)))


LEFTOVERS = {
    "bert": ["loss_fct.weight", "cls.predictions.bias", "cls.seq_relationship.weight", "dropout.p", "qa_outputs.bias",
             "bert.embeddings.position_ids", "bert.encoder.layer.0.dropout.p", "criterion.weight", "class_weights"],
    "gpt": ["transformer.h.0.attn.bias", "h.1.attn.masked_bias", "score.weight", "multiple_choice_head.summary.weight"],
    "vit": ["vit.pooler.dense.weight", "vit.embeddings.mask_token", "decoder.0.weight", "pos_weight"],
    "mixer": ["loss_fn.weight"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config", "family"),
    [(Bert, CLASSIFIER, "bert"), (Gpt, GPT, "gpt"), (Vit, VIT, "vit"), (Mixer, MIXER, "mixer")],
)
def test_known_leftovers_are_ignored_and_others_only_if_allowed(
    kind: type[nn.Module], config: Any, family: str, checkpoint: Callable[..., Checkpoint]
) -> None:
    saved_config, tensors = checkpoint(kind, config)
    expected = load((saved_config, tensors))
    known = tensors | {name: torch.ones(1) for name in LEFTOVERS[family]}
    assert_same(load((saved_config, known)), expected)
    others = known | {"classifier.dense.weight": torch.ones(1), "adapter.x": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"left over adapter.x: found \(1\).*\n.*--ignore-unused leaves them out"):
        load((saved_config, {name: tensor for name, tensor in others.items() if "dense" not in name or name in known}))
    fit = fitted(saved_config, others, ignore_unused=True)
    assert_same(fit.model, expected)
    assert "adapter.x" in fit.ignored


def test_missing_tensors_are_never_ignored(checkpoint: Callable[..., Checkpoint]) -> None:
    config, tensors = checkpoint(Bert, CLASSIFIER)
    del tensors["classifier.bias"]
    with pytest.raises(CheckpointError, match=r"missing classifier.bias: expected \(3\)"):
        load((config, tensors), ignore_unused=True)


@pytest.mark.parametrize("config", [MASKED, CLASSIFIER])
def test_an_encoder_can_be_taken_out_of_any_bert(config: Any, checkpoint: Callable[..., Checkpoint]) -> None:
    saved_config, tensors = checkpoint(Bert, config)
    model = load((saved_config, tensors), pooling="mean")
    encoder = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if name.startswith("bert.")}
    for name, tensor in published(model).items():
        assert torch.equal(tensor, encoder[name])


# Tensors that are refused


def test_missing_leftover_and_misshapen_tensors_are_listed_together(checkpoint: Callable[..., Checkpoint]) -> None:
    config, tensors = checkpoint(Gpt, GPT)
    del tensors["transformer.h.1.attn.c_attn.bias"]
    tensors["transformer.h.0.attn.c_attn.weight"] = tensors["transformer.h.0.attn.c_attn.weight"].T
    tensors["transformer.h.2.ln_1.weight"] = torch.ones(64)
    tensors["transformer.ln_f.bias"] = torch.ones(64, dtype=torch.int8)
    tensors["wpe.weight"] = tensors["transformer.wpe.weight"]
    with pytest.raises(CheckpointError) as refused:
        load((config, tensors), file="model.safetensors")
    assert sorted(str(refused.value).splitlines()) == [
        "  expected the whole model that config.json describes, by the names of transformers or timm",
        "  left over transformer.h.2.ln_1.weight: found (64), expected no such tensor",
        "  misshapen transformer.h.0.attn.c_attn.weight: found (192, 64), expected (64, 192)",
        "  missing transformer.h.1.attn.c_attn.bias: expected (192)",
        "  not a weight transformer.ln_f.bias: found torch.int8, expected floating point",
        "  twice wpe.weight: found transformer.wpe.weight too, expected one of them",
        "model.safetensors: 5 tensors are not those of Gpt:",
    ]


@pytest.mark.parametrize(("kind", "config"), [(Bert, MASKED), (Gpt, GPT), (Vit, VIT), (Mixer, MIXER)])
def test_the_first_tensors_of_each_fault_are_named_and_all_are_counted(
    kind: type[nn.Module], config: Any, checkpoint: Callable[..., Checkpoint]
) -> None:
    saved_config, tensors = checkpoint(kind, config)
    with pytest.raises(CheckpointError) as refused:
        load((saved_config, {f"other.{name}": tensor for name, tensor in tensors.items()}))
    said = str(refused.value)
    assert f"the weights: {2 * len(tensors)} tensors are not those of {kind.__name__}:" in said
    for fault in ("missing ", "left over other."):
        assert sum(f"{fault}{name}: " in said for name in tensors) == 3
        assert f"and {len(tensors) - 3} more {fault.split(' other')[0].strip()}" in said


def test_a_pooler_is_required_where_it_is_used_alone(checkpoint: Callable[..., Checkpoint]) -> None:
    saved_config, tensors = checkpoint(Bert, ENCODER)
    assert load((saved_config, tensors), pooling="first-token")
    with pytest.raises(CheckpointError, match=r"missing pooler.dense.bias: expected \(64\)"):
        load((saved_config, tensors), pooling="pooler")
