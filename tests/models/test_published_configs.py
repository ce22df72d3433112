"""Published configurations: what is refused, defaults, tasks and labels."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BertConfig,
)

from models import Bert, Gpt, Mixer, MixerConfig, Vit
from models.checkpoints import (
    CheckpointError,
    architecture,
    configuration,
    for_task,
    labels,
    load,
    published_config,
)
from models.config import (
    BERT_PRESETS,
    GPT_PRESETS,
    MIXER_PRESETS,
    VIT_PRESETS,
    NormaliseLayer,
)

Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]
MASKED, GPT, VIT, MIXER = (presets["tiny"] for presets in (BERT_PRESETS, GPT_PRESETS, VIT_PRESETS, MIXER_PRESETS))
CLASSIFIER, ENCODER = replace(MASKED, head="classifier", classes=3), replace(MASKED, head="pooling")


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
    ("bert",  {"architectures": [], "model_type": "t5"},   "architectures is missing: found model_type 't5'; --task needs a model_type that is one of bert, "),  # noqa: E501
    ("bert",  {"architectures": [], "model_type": None},   "architectures is missing: found no model_type either"),
    ("bert",  {"architectures": ["BertForTokenClassification"]}, "names BertForTokenClassification: expected one of .*; take --task"),  # noqa: E501
    ("bert",  {"layer_norm_eps": "1e-12"},                 "layer_norm_eps is '1e-12': expected a number"),
    ("bert",  {"model_type": "roberta"},                   "model_type is 'roberta': expected 'bert'"),
    ("bert",  {"hidden_act": "prelu"},                     "hidden_act is 'prelu': expected one of gelu, gelu_python, gelu_new"),  # noqa: E501
    ("bert",  {"hidden_act": ["gelu"]},                    r"hidden_act is \['gelu'\]: expected one of gelu"),
    ("bert",  {"hidden_size": None},                       "hidden_size is missing"),
    ("bert",  {"hidden_size": "64"},                       "hidden_size is '64': expected a whole number"),
    ("bert",  {"hidden_size": True},                       "hidden_size is True: expected a whole number"),
    ("bert",  {"type_vocab_size": 0},                      "type_vocab_size is 0: expected a whole number, at least 1"),
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
    ("gpt",   {"n_inner": True},                           "n_inner is True: expected a whole number"),
    ("gpt",   {"add_cross_attention": True},               "add_cross_attention is True: expected False"),
    ("gpt",   {"tie_word_embeddings": "no"},               "tie_word_embeddings is 'no': expected true or false"),
    ("vit",   {"image_size": [32, 64]},                    r"image_size is \[32, 64\]: expected a square"),
    ("vit",   {"patch_size": 7},                           "image_size 32 is not a multiple of patch_size 7"),
    ("vit",   {"hidden_act": "gelu_glu"},                  "hidden_act is 'gelu_glu': expected one of gelu"),
    ("mixer", {"pretrained_cfg": ["x"]},                   r"pretrained_cfg is \['x'\]: expected an object"),
    ("mixer", {"model_args": "x"},                         "model_args is 'x': expected an object"),
    ("mixer", {"pretrained_cfg": {"input_size": 224}},     "input_size is 224: expected channels, height and width"),
    ("mixer", {"model_args": {"mlp_ratio": "4"}},          "mlp_ratio is '4': expected a number, or two"),
    ("mixer", {"num_classes": 0},                          "num_classes is 0: expected a whole number, at least 1"),
    ("mixer", {"architecture": ["mixer_b16_224"]},         "architecture is .*: expected one of mixer_s"),
    ("mixer", {"architecture": "gmixer_24_224"},           "architecture is 'gmixer_24_224': expected one of mixer_s"),
    ("mixer", {"global_pool": "max"},                      "global_pool is 'max': expected 'avg'"),
    ("mixer", mixer_with(act_layer="relu"),                "model_args has act_layer: expected only embed_dim, "),
    ("mixer", mixer_with(stem_norm=True),                  "stem_norm is True: expected False"),
    ("mixer", mixer_with(img_size=[32, 16]),               r"img_size is \[32, 16\]: expected a square"),
    ("mixer", mixer_with(num_classes=0),                   "num_classes is 0: expected a whole number"),
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
        configuration(PUBLISHED["classifier"], vector_layers=[NormaliseLayer()])


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
