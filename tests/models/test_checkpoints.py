"""Published checkpoints, as they come: old names, missing prefixes, doubled tensors; and what is refused, by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2LMHeadModel,
    ViTForImageClassification,
)

from models import AttentionOnly, Bert, Gpt, Mixer, MixerConfig, Vit
from models.checkpoints import (
    CheckpointError,
    architecture,
    configuration,
    fitted,
    for_task,
    labels,
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


@pytest.fixture
def checkpoint(randomised: Callable[[nn.Module], nn.Module]) -> Callable[..., Checkpoint]:
    def of(kind: type[nn.Module], config: object) -> Checkpoint:
        model = randomised(kind(config))
        return published_config(model), published(model)

    return of


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
    model = randomised(Bert(replace(MASKED, **head, layers=layers)))
    assert_same(load((published_config(model), published(model)), pooling=pooling, layers=layers), model)


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


# Configurations that are refused

PUBLISHED = {
    "bert": published_config(Bert(MASKED)),
    "encoder": published_config(Bert(ENCODER)),
    "classifier": published_config(Bert(CLASSIFIER)),
    "gpt": published_config(Gpt(GPT)),
    "vit": published_config(Vit(VIT)),
    "mixer": published_config(Mixer(MIXER)),
}

ROBERTA = {"architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}
DISTILBERT = {"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert"}


def mixer_with(**arguments: object) -> dict[str, object]:
    return {"model_args": {**PUBLISHED["mixer"]["model_args"], **arguments}}


# fmt: off
@pytest.mark.parametrize(("base", "change", "message"), [
    ("bert",  {"architectures": ["ElectraForMaskedLM"]},   "architectures names ElectraForMaskedLM: expected one of BertForMaskedLM, .*GPT2LMHeadModel, .*mixer_b16_224"),  # noqa: E501
    ("bert",  {"architectures": "BertForMaskedLM"},        "architectures is 'BertForMaskedLM': expected a list"),
    ("bert",  {"architectures": None},                     "architectures is missing: take --task fill-mask, classify-text or embed if"),  # noqa: E501
    ("bert",  {"architectures": [], "model_type": "t5"},   "architectures is missing: found model_type 't5', which .* if it were one of bert, "),  # noqa: E501
    ("bert",  {"architectures": [], "model_type": None},   "architectures is missing: found no model_type either"),
    ("bert",  {"architectures": ["BertForTokenClassification"]}, "names BertForTokenClassification: expected one of .*; take --task"),  # noqa: E501
    ("bert",  {"layer_norm_eps": "1e-12"},                 "layer_norm_eps is '1e-12': expected a number"),
    ("bert",  {"model_type": "roberta"},                   "model_type is 'roberta': expected 'bert'"),
    ("bert",  {"hidden_act": "prelu"},                     "hidden_act is 'prelu': expected one of gelu, gelu_python, gelu_new"),  # noqa: E501
    ("bert",  {"hidden_act": ["gelu"]},                    r"hidden_act is \['gelu'\]: expected one of gelu"),
    ("bert",  {"hidden_size": None},                       "hidden_size is missing"),
    ("bert",  {"hidden_size": "64"},                       "BertConfig.width is '64': expected a whole number"),
    ("bert",  {"num_attention_heads": 7},                  "width 64 cannot be cut into 7 heads"),
    ("bert",  {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key': expected 'absolute'"),  # noqa: E501
    ("bert",  {"is_decoder": True},                        "is_decoder is True: expected False"),
    ("bert",  {"add_cross_attention": True},               "add_cross_attention is True: expected False"),
    ("bert",  {"quantization_config": {"bits": 4}},        "quantization_config is {'bits': 4}: expected None"),
    ("bert",  {"auto_map": {"AutoModel": "theirs.py"}},    "auto_map is .*: expected None"),
    ("bert",  ROBERTA | {"pad_token_id": 0},               "pad_token_id is 0: expected 1"),
    ("bert",  ROBERTA | {"max_position_embeddings": 2},    "BertConfig.positions is 0: expected a whole number"),
    ("bert",  DISTILBERT,                                  "dim is missing"),
    ("encoder", {},                                        "architectures names BertModel, an encoder: expected pooling, one of pooler, first-token, max, mean"),  # noqa: E501
    ("classifier", {"id2label": {"0": "a", "2": "b"}},     "id2label numbers 0, 2: expected 0 to 1, each once"),
    ("classifier", {"id2label": {"zero": "a"}},            "id2label is {'zero': 'a'}: expected the name of each"),
    ("classifier", {"num_labels": "3"},                    "num_labels is '3': expected a whole number"),
    ("gpt",   {"activation_function": "xielu"},            "activation_function is 'xielu': expected one of gelu"),
    ("gpt",   {"add_cross_attention": True},               "add_cross_attention is True: expected False"),
    ("gpt",   {"tie_word_embeddings": "no"},               "tie_word_embeddings is 'no': expected true or false"),
    ("vit",   {"image_size": [32, 64]},                    r"image_size is \[32, 64\]: expected a square"),
    ("vit",   {"patch_size": 7},                           "image_size 32 is not a multiple of patch_size 7"),
    ("vit",   {"hidden_act": "gelu_glu"},                  "hidden_act is 'gelu_glu': expected one of gelu"),
    ("mixer", {"architecture": "gmixer_24_224"},           "architecture is 'gmixer_24_224': expected one of mixer_s"),
    ("mixer", {"global_pool": "max"},                      "global_pool is 'max': expected 'avg'"),
    ("mixer", mixer_with(act_layer="relu"),                "model_args has act_layer: expected only embed_dim, "),
    ("mixer", mixer_with(stem_norm=True),                  "stem_norm is True: expected False"),
    ("mixer", mixer_with(img_size=[32, 16]),               r"img_size is \[32, 16\]: expected a square"),
    ("mixer", mixer_with(num_classes=0),                   "MixerConfig.classes is 0: expected a whole number"),
])
# fmt: on
def test_settings_that_change_the_computation_are_refused(base: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(({**PUBLISHED[base], **change}, {}))


def test_poolings_are_known_ones_and_for_bert_alone() -> None:
    with pytest.raises(CheckpointError, match="pooling is 'min': expected pooler, or some of first-token, max, mean"):
        configuration(PUBLISHED["encoder"], pooling="min")
    with pytest.raises(CheckpointError, match="pooling is 'mean', with 0 layers: expected neither, for gpt"):
        configuration(PUBLISHED["gpt"], pooling="mean")
    with pytest.raises(CheckpointError, match="found 1 layers after the head classifier: expected pooling"):
        configuration(PUBLISHED["classifier"], layers=[NormaliseLayer()])


def test_only_positions_of_patches_can_be_interpolated(checkpoint: Callable[..., Checkpoint]) -> None:
    for kind, config in ((Mixer, MIXER), (Gpt, GPT)):
        with pytest.raises(CheckpointError, match=f"image_size is 64, for {kind.__name__}: only ViT and DeiT"):
            load(checkpoint(kind, config), image_size=64)
    with pytest.raises(CheckpointError, match="image_size is 60: image_size 60 is not a multiple of patch_size 8"):
        load(checkpoint(Vit, VIT), image_size=60)


def test_distilbert_has_no_pooler() -> None:
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 9, "max_position_embeddings": 8}
    with pytest.raises(CheckpointError, match="pooling is 'pooler': expected some of .*, DistilBERT has no"):
        configuration({"architectures": ["DistilBertModel"], **sizes}, pooling="pooler")


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json: found nothing"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json is not JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json holds a list: expected an object"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"has no model.safetensors: found config.json, expected one of .*\.bin"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a safetensors file"):
        load(tmp_path)


# What a configuration says


def test_missing_keys_have_the_defaults_of_transformers() -> None:
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    bert = {"architectures": ["BertForMaskedLM"], **sizes, "vocab_size": 30522, "max_position_embeddings": 512}
    assert configuration(bert) == ("bert", BERT_PRESETS["bert-base"])
    vit = {"architectures": ["ViTForImageClassification"], **sizes, "num_labels": 1000}
    assert configuration(vit) == ("vit", VIT_PRESETS["vit-b/16"])
    sizes = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
    assert configuration({"architectures": ["GPT2LMHeadModel"], **sizes}) == ("gpt", GPT_PRESETS["gpt2"])


@pytest.mark.parametrize(
    ("architecture", "patch", "depth", "width"),
    [
        ("mixer_s32_224", 32, 8, 512),
        ("mixer_s16_224", 16, 8, 512),
        ("mixer_b32_224", 32, 12, 768),
        ("mixer_b16_224", 16, 12, 768),
        ("mixer_l32_224", 32, 24, 1024),
        ("mixer_l16_224", 16, 24, 1024),
    ],
)
def test_mixers_have_the_sizes_of_their_architectures(architecture: str, patch: int, depth: int, width: int) -> None:
    sizes = {"width": width, "depth": depth, "token_mlp_width": width // 2, "mlp_width": 4 * width}
    assert configuration({"architecture": architecture}) == ("mixer", MixerConfig(**sizes, patch_size=patch))


def test_arguments_override_pretrained_sizes_which_override_a_mixers_architecture() -> None:
    trained = {"input_size": [1, 64, 64], "num_classes": 10}
    config = {"architecture": "mixer_b16_224", "num_classes": 5, "pretrained_cfg": trained}
    assert configuration(config) == configuration({"architecture": "mixer_b16_224", **trained, "num_classes": 5})
    _, mixer = configuration(config)
    assert (mixer.channels, mixer.image_size, mixer.classes) == (1, 64, 5)
    _, mixer = configuration({**config, "model_args": {"img_size": 32, "in_chans": 3, "mlp_ratio": 2}})
    assert (mixer.channels, mixer.image_size, mixer.token_mlp_width, mixer.mlp_width) == (3, 32, 1536, 1536)


@pytest.mark.parametrize(
    ("config", "task", "found"),
    [
        ({"model_type": "bert"}, "fill-mask", ("bert", "masked-language")),
        ({"model_type": "bert", "architectures": None}, "classify-text", ("bert", "classifier")),
        ({"model_type": "roberta", "architectures": []}, "embed", ("roberta", None)),
        ({"model_type": "distilbert"}, "classify-text", ("distilbert", "classifier")),
        ({"model_type": "gpt2"}, "generate", ("gpt", None)),
        ({"model_type": "deit"}, "classify-image", ("deit", None)),
        ({"architectures": ["BertForTokenClassification"], "model_type": "bert"}, "embed", ("bert", None)),
        ({"architectures": ["GPT2Model"], "model_type": "gpt2"}, "generate", ("gpt", None)),
        ({"architectures": ["BertForPreTraining"]}, "fill-mask", ("bert", "masked-language")),
        ({"architectures": ["BertForMaskedLM"]}, "embed", ("bert", None)),
        (
            {"architectures": ["DeiTForImageClassificationWithTeacher"]},
            "classify-image",
            ("deit", "with-teacher"),
        ),
        ({"architecture": "mixer_b16_224"}, "classify-image", ("mixer", None)),
    ],
)
def test_a_task_replaces_a_missing_architecture(config: dict, task: str, found: tuple[str, str | None]) -> None:
    assert architecture(for_task(config, task)) == found


@pytest.mark.parametrize(
    ("config", "task", "message"),
    [
        ({"model_type": "bert"}, "generate", "--task generate: expected fill-mask, classify-text or embed"),
        ({"architectures": ["GPT2LMHeadModel"]}, "embed", "--task embed: expected generate, for a model of the family"),
        ({"architecture": "mixer_b16_224"}, "embed", "--task embed: expected classify-image"),
        ({"model_type": "t5"}, "embed", "model_type is 't5': expected one of bert, roberta, distilbert, gpt2, vit"),
        ({}, "embed", "model_type is missing: expected one of bert"),
    ],
)
def test_a_task_must_be_one_of_the_family(config: dict, task: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        for_task(config, task)


def test_square_image_sizes_are_read_as_one_side() -> None:
    _, vit = configuration({**PUBLISHED["vit"], "image_size": [48, 48], "patch_size": [8, 8]})
    assert (vit.image_size, vit.patch_size) == (48, 8)


@given(width=st.integers(1, 4096), hidden=st.integers(1, 16384))
def test_a_mixers_widths_survive_being_published_as_ratios(width: int, hidden: int) -> None:
    config = replace(MIXER, width=width, token_mlp_width=hidden, mlp_width=hidden)
    with torch.device("meta"):
        model = nn.Module()
    model.config = config
    assert configuration(published_config(model)) == ("mixer", config)


# The names of the classes


@pytest.mark.parametrize("base", ["classifier", "vit", "mixer"])
def test_classes_keep_their_names(base: str) -> None:
    kind, config = {"classifier": (Bert, CLASSIFIER), "vit": (Vit, VIT), "mixer": (Mixer, MIXER)}[base]
    names = [f"thing {n}" for n in range(config.classes)]
    assert labels(published_config(kind(config), names)) == names


@pytest.mark.parametrize("base", ["classifier", "vit", "mixer"])
def test_classes_without_a_name_get_a_number(base: str) -> None:
    assert labels(PUBLISHED[base])[:2] == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"num_labels": 3},
        {"id2label": {"2": "c", "0": "a", "1": "b"}},
        {"id2label": {"0": "a", "1": "b"}, "num_labels": 3},
        {"id2label": {"0": "a", "1": "b", "2": "c"}, "num_labels": 2},
        {"id2label": {"00": "a", "1": "b"}, "label2id": {"x": 0}},
        {"label2id": {"x": 0, "y": 1, "z": 2}, "num_labels": 3},
        {"label2id": {"x": 0, "y": 1, "z": 2}},
        {"id2label": None, "num_labels": 1},
        {"id2label": {"0": 1, "1": 2}},
    ],
)
def test_labels_are_those_that_transformers_reads(said: dict[str, Any]) -> None:
    names = BertConfig.from_dict(said).id2label
    assert labels(said) == [str(names[n]) for n in range(len(names))]


def test_labels_come_in_the_order_of_their_numbers() -> None:
    config = {**PUBLISHED["vit"], "id2label": {str(n): f"thing {n}" for n in reversed(range(11))}}
    assert labels(config) == [f"thing {n}" for n in range(11)]


def test_a_mixers_labels_may_stand_with_its_pretraining() -> None:
    trained = {"num_classes": 2, "label_names": ["cat", "dog"]}
    assert labels({"architecture": "mixer_b16_224", "pretrained_cfg": trained}) == ["cat", "dog"]
    assert labels({"architecture": "mixer_b16_224", "num_classes": 2, "labels": ["cat", "dog"]}) == ["cat", "dog"]


def test_there_is_a_label_for_each_class() -> None:
    with pytest.raises(CheckpointError, match="3 labels for 10 classes: expected one for each"):
        labels({**PUBLISHED["mixer"], "label_names": ["a", "b", "c"]})
    with pytest.raises(CheckpointError, match="2 names for 10 classes: expected one for each"):
        published_config(Vit(VIT), ["a", "b"])
