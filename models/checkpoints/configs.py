"""A published `config.json` to one of our configurations, and back, in the words of transformers.

What would silently compute something else is refused by name. Knows no tensors and no files.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from models.checkpoints.errors import CheckpointError, Json, expect, square
from models.checkpoints.labels import labels
from models.checkpoints.mixer_configs import MIXERS, mixer, published_mixer
from models.config import BertConfig, GptConfig, MixerConfig, StackConfig, VitConfig
from models.mlp import ACTIVATIONS

POOLINGS = ("mean", "first-token", "pooler")  # BERT's heads that give an embedding

# Published architecture: its family and, for BERT, the head that it stands for (an encoder's is the caller's choice).
ARCHITECTURES: dict[str, tuple[str, str | None]] = {
    "BertForMaskedLM": ("bert", "masked-language"),
    "BertForPreTraining": ("bert", "masked-language"),
    "BertForSequenceClassification": ("bert", "classifier"),
    "BertModel": ("bert", None),
    "GPT2LMHeadModel": ("gpt", None),
    "ViTForImageClassification": ("vit", None),
}
CONFIGS: dict[str, type[StackConfig]] = {"bert": BertConfig, "gpt": GptConfig, "vit": VitConfig}
MODEL_TYPES = {"bert": "bert", "gpt": "gpt2", "vit": "vit"}  # our family: what transformers calls it

# fmt: off
# Our field: its published name and, where transformers has one, the value it takes when the file is silent. The sizes
# have none: a wrong count of heads fits every tensor.
REQUIRED = None
FIELDS: dict[str, dict[str, tuple[str, Any]]] = {
    "bert": {
        "width":        ("hidden_size",             REQUIRED),
        "depth":        ("num_hidden_layers",       REQUIRED),
        "heads":        ("num_attention_heads",     REQUIRED),
        "mlp_width":    ("intermediate_size",       REQUIRED),
        "vocabulary":   ("vocab_size",              REQUIRED),
        "positions":    ("max_position_embeddings", REQUIRED),
        "segments":     ("type_vocab_size",         2),
        "activation":   ("hidden_act",              "gelu"),
        "norm_epsilon": ("layer_norm_eps",          1e-12),
    },
    "gpt": {
        "width":        ("n_embd",                  REQUIRED),
        "depth":        ("n_layer",                 REQUIRED),
        "heads":        ("n_head",                  REQUIRED),
        "vocabulary":   ("vocab_size",              REQUIRED),
        "positions":    ("n_positions",             REQUIRED),
        "activation":   ("activation_function",     "gelu_new"),
        "norm_epsilon": ("layer_norm_epsilon",      1e-5),
    },
    "vit": {
        "width":        ("hidden_size",             REQUIRED),
        "depth":        ("num_hidden_layers",       REQUIRED),
        "heads":        ("num_attention_heads",     REQUIRED),
        "mlp_width":    ("intermediate_size",       REQUIRED),
        "image_size":   ("image_size",              224),
        "patch_size":   ("patch_size",              16),
        "channels":     ("num_channels",            3),
        "activation":   ("hidden_act",              "gelu"),
        "norm_epsilon": ("layer_norm_eps",          1e-12),
    },
}
# Published field: the one value with which it computes what is written here.
EXPECTED: dict[str, dict[str, Any]] = {
    "all": {"auto_map": None, "quantization_config": None},  # code of its own; weights that are not plain numbers
    "bert": {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    "gpt": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
            "tie_word_embeddings": True},
    "vit": {"qkv_bias": True},
}
# fmt: on


def configuration(
    config: Json, *, pooling: str | None = None, normalise: bool = False
) -> tuple[str, BertConfig | GptConfig | VitConfig | MixerConfig]:
    """The family (bert, gpt, vit, mixer) and the sizes that a published `config.json` describes.

    `pooling` makes an encoder of any BERT: "mean", "first-token" or "pooler", its vector of length 1 if `normalise`.
    It is the caller's to say, for `config.json` does not (sentence-transformers keeps it in a file of its own).
    """
    if pooling is not None and pooling not in POOLINGS:
        raise CheckpointError(f"pooling is {pooling!r}: expected one of {', '.join(POOLINGS)}")
    family, head = architecture(config)
    if (pooling or normalise) and family != "bert":
        raise CheckpointError(f"pooling is {pooling!r}, normalise is {normalise}: expected neither, for {family}")
    try:
        ours = READERS[family](config, pooling or head)
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:  # a value out of its range, or of the wrong type
        raise CheckpointError(f"config.json: {error}") from error
    if normalise and not pooling:
        raise CheckpointError(f"normalise is True for the head {head}: expected pooling, there is no vector")
    return family, replace(ours, normalise=True) if normalise else ours


def architecture(config: Json) -> tuple[str, str | None]:
    """The family of a published architecture, and its head. (timm names one, transformers a list of them.)"""
    if "architecture" in config:
        return "mixer", None
    name = (config.get("architectures") or ["nothing"])[0]
    if name not in ARCHITECTURES:
        known = ", ".join([*ARCHITECTURES, *MIXERS])
        raise CheckpointError(f"config.json: architectures names {name}: expected one of {known}")
    family, head = ARCHITECTURES[name]
    expect(config, {"model_type": MODEL_TYPES[family], **EXPECTED["all"], **EXPECTED[family]})
    return family, head


def sizes(config: Json, family: str) -> dict[str, Any]:
    """The fields of our configuration that have a counterpart of the same meaning."""
    ours = {}
    for field, (key, default) in FIELDS[family].items():
        value = config.get(key, default)
        if value is None:
            raise CheckpointError(f"config.json: {key} is missing: expected a value for it")
        if field == "activation" and value not in ACTIVATIONS:
            raise CheckpointError(f"config.json: {key} is {value!r}: expected one of {', '.join(ACTIVATIONS)}")
        ours[field] = square(key, value) if field in ("image_size", "patch_size") else value
    return ours


def bert(config: Json, head: str | None) -> BertConfig:
    if head is None:
        known = ", ".join(POOLINGS)
        raise CheckpointError(
            f"config.json: architectures names BertModel, an encoder: expected pooling, one of {known}"
        )
    if head == "masked-language":
        expect(config, {"tie_word_embeddings": True})
    classes = {"classes": len(labels(config))} if head == "classifier" else {}
    return BertConfig(**sizes(config, "bert"), **classes, head=head)


def gpt(config: Json, head: str | None) -> GptConfig:
    ours = sizes(config, "gpt")
    return GptConfig(**ours, mlp_width=config.get("n_inner") or 4 * ours["width"])


def vit(config: Json, head: str | None) -> VitConfig:
    return VitConfig(**sizes(config, "vit"), classes=len(labels(config)))


READERS = {"bert": bert, "gpt": gpt, "vit": vit, "mixer": lambda config, head: mixer(config)}


def published_config(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The `config.json` that describes `model`, its classes called `names`."""
    config = model.config
    classes = getattr(config, "classes", 0)
    if names is not None and len(names) != classes:
        raise CheckpointError(f"{len(names)} names for {classes} classes: expected one for each")
    if isinstance(config, MixerConfig):
        return published_mixer(config, names)
    family = next(family for family, kind in CONFIGS.items() if isinstance(config, kind))
    published = {key: getattr(config, field) for field, (key, _) in FIELDS[family].items()}
    head = getattr(config, "head", None)
    wanted = (family, None if head in POOLINGS else head)
    published["architectures"] = [next(name for name, stands_for in ARCHITECTURES.items() if stands_for == wanted)]
    published["model_type"] = MODEL_TYPES[family]
    if family == "gpt":
        published["n_inner"] = config.mlp_width
    if family == "vit" or head == "classifier":
        names = names or [f"LABEL_{n}" for n in range(classes)]
        published["id2label"] = {str(n): name for n, name in enumerate(names)}
        published["label2id"] = {name: n for n, name in enumerate(names)}
    return published
