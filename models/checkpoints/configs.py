"""A published `config.json` to one of our configurations, and back, in the words of transformers.

What would silently compute something else is refused by name. Knows no tensors and no files.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from models.checkpoints.errors import CheckpointError, Json, expect, square
from models.checkpoints.labels import labels
from models.checkpoints.layout import POSITION_OFFSET
from models.checkpoints.mixer_configs import MIXERS, check_mixer, mixer, published_mixer
from models.checkpoints.nanogpt import ARCHITECTURE as NANOGPT
from models.checkpoints.nanogpt import activation
from models.config import BertConfig, GptConfig, MixerConfig, StackConfig, VectorLayer, VitConfig
from models.heads import POOLINGS
from models.mlp import ACTIVATIONS

POOLER = "pooler"  # BERT's own summary of a text, which counts as a pooling here

# Published architecture: its family and the head that it stands for (an encoder's is the caller's choice).
ARCHITECTURES: dict[str, tuple[str, str | None]] = {
    "BertForMaskedLM": ("bert", "masked-language"),
    "BertForPreTraining": ("bert", "masked-language"),
    "BertForSequenceClassification": ("bert", "classifier"),
    "BertModel": ("bert", None),
    "RobertaForMaskedLM": ("roberta", "masked-language"),
    "RobertaForSequenceClassification": ("roberta", "classifier"),
    "RobertaModel": ("roberta", None),
    "DistilBertForMaskedLM": ("distilbert", "masked-language"),
    "DistilBertForSequenceClassification": ("distilbert", "classifier"),
    "DistilBertModel": ("distilbert", None),
    "GPT2LMHeadModel": ("gpt", None),
    "ViTForImageClassification": ("vit", None),
    "DeiTForImageClassification": ("deit", None),
    "DeiTForImageClassificationWithTeacher": ("deit", "with-teacher"),
    NANOGPT: ("nanogpt", None),
}
ENCODERS = ("bert", "roberta", "distilbert")
OURS: dict[str, type[StackConfig]] = {"bert": BertConfig, "gpt": GptConfig, "vit": VitConfig, "mixer": MixerConfig}
MODEL_TYPES = {"gpt": "gpt2"}  # what transformers calls a family where it has another word

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
    "distilbert": {
        "width":        ("dim",                     REQUIRED),
        "depth":        ("n_layers",                REQUIRED),
        "heads":        ("n_heads",                 REQUIRED),
        "mlp_width":    ("hidden_dim",              REQUIRED),
        "vocabulary":   ("vocab_size",              REQUIRED),
        "positions":    ("max_position_embeddings", REQUIRED),
        "activation":   ("activation",              "gelu"),
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
    "nanogpt": {
        "width":        ("n_embd",                  REQUIRED),
        "depth":        ("n_layer",                 REQUIRED),
        "heads":        ("n_head",                  REQUIRED),
        "vocabulary":   ("vocab_size",              REQUIRED),
        "positions":    ("block_size",              REQUIRED),
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
FIELDS |= {"roberta": FIELDS["bert"], "deit": FIELDS["vit"]}
# Published field: the one value with which it computes what is written here.
EXPECTED: dict[str, dict[str, Any]] = {
    "all": {"auto_map": None, "quantization_config": None},  # code of its own; weights that are not plain numbers
    "bert": {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    "roberta": {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False,
                "pad_token_id": POSITION_OFFSET - 1},
    "distilbert": {},
    "gpt": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
            "tie_word_embeddings": True},
    "nanogpt": {},
    "vit": {"qkv_bias": True},
    "deit": {"qkv_bias": True},
}
# fmt: on


def configuration(
    config: Json, *, pooling: str | Sequence[str] | None = None, layers: Sequence[VectorLayer] = ()
) -> tuple[str, BertConfig | GptConfig | VitConfig | MixerConfig]:
    """The published family (bert, roberta, …, mixer) and the sizes that a published `config.json` describes.

    `pooling` makes an encoder of any BERT, RoBERTa or DistilBERT: "pooler", one of POOLINGS or several to be joined.
    `layers` follow it. Both are the caller's to say, for `config.json` does not (sentence-transformers keeps them in
    files of its own).
    """
    poolings = (pooling,) if isinstance(pooling, str) else tuple(pooling or ())
    if poolings != (POOLER,) and not set(poolings) <= set(POOLINGS):
        raise CheckpointError(f"pooling is {pooling!r}: expected {POOLER}, or some of {', '.join(POOLINGS)}")
    family, head = architecture(config)
    if (poolings or layers) and family not in ENCODERS:
        raise CheckpointError(f"pooling is {pooling!r}, with {len(layers)} layers: expected neither, for {family}")
    if layers and not poolings:
        raise CheckpointError(f"found {len(layers)} layers after the head {head}: expected pooling, there is no vector")
    if poolings:
        head = POOLER if poolings == (POOLER,) else "pooling"
    try:
        ours = READERS[family](config, head)
        if head == "pooling":
            ours = replace(ours, poolings=poolings)
        return family, replace(ours, layers=tuple(layers)) if layers else ours
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:  # a value out of its range, or of the wrong type
        raise CheckpointError(f"config.json: {error}") from error


def architecture(config: Json) -> tuple[str, str | None]:
    """The family of a published architecture, and its head. (timm names one, transformers a list of them.)"""
    if "architecture" in config:
        check_mixer(config["architecture"])
        return "mixer", None
    name = (config.get("architectures") or ["nothing"])[0]
    if name not in ARCHITECTURES:
        known = ", ".join([*(name for name in ARCHITECTURES if name != NANOGPT), *MIXERS])
        raise CheckpointError(f"config.json: architectures names {name}: expected one of {known}")
    family, head = ARCHITECTURES[name]
    expect(config, {"model_type": MODEL_TYPES.get(family, family), **EXPECTED["all"], **EXPECTED[family]})
    return family, head


def guessed(config: Json) -> str | None:
    """What a file does not say and had to be guessed, and why so, for a reader; None if it says all."""
    return activation(config)[1] if architecture(config)[0] == "nanogpt" else None


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


def bert(config: Json, head: str | None, family: str = "bert") -> BertConfig:
    if head is None:
        known = ", ".join((POOLER, *POOLINGS))
        name = config["architectures"][0]
        raise CheckpointError(f"config.json: architectures names {name}, an encoder: expected pooling, one of {known}")
    if head == "masked-language":
        expect(config, {"tie_word_embeddings": True})
    classes = {"classes": len(labels(config))} if head == "classifier" else {}
    return BertConfig(**sizes(config, family), **classes, head=head)


def roberta(config: Json, head: str | None) -> BertConfig:
    if head == "masked-language":
        expect(config, {"hidden_act": "gelu"})  # that of its head, whatever the blocks have
    ours = bert(config, head, "roberta")
    return replace(ours, positions=ours.positions - POSITION_OFFSET, pad_position=True)


def distilbert(config: Json, head: str | None) -> BertConfig:
    if head == POOLER:
        raise CheckpointError(f"pooling is 'pooler': expected some of {', '.join(POOLINGS)}, DistilBERT has no pooler")
    return replace(bert(config, head, "distilbert"), segments=0, pooler_activation="relu")


def gpt(config: Json, head: str | None) -> GptConfig:
    ours = sizes(config, "gpt")
    return GptConfig(**ours, mlp_width=config.get("n_inner") or 4 * ours["width"])


def nanogpt(config: Json, head: str | None) -> GptConfig:
    ours = sizes(config, "nanogpt")
    return GptConfig(**ours, mlp_width=4 * ours["width"], activation=activation(config)[0])


def vit(config: Json, head: str | None) -> VitConfig:
    return VitConfig(**sizes(config, "vit"), classes=len(labels(config)))


def deit(config: Json, head: str | None) -> VitConfig:
    return replace(vit(config, head), class_tokens=2, classifiers=2 if head == "with-teacher" else 1)


READERS = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt": gpt,
    "nanogpt": nanogpt,
    "vit": vit,
    "deit": deit,
    "mixer": lambda config, head: mixer(config),
}


def own_family(config: StackConfig) -> str:
    """The family in which we publish a model. Of several with the same blocks it is the first."""
    return next(family for family, kind in OURS.items() if isinstance(config, kind))


def published_config(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The `config.json` that describes `model`, its classes called `names`."""
    config = model.config
    classes = getattr(config, "classes", 0)
    if names is not None and len(names) != classes:
        raise CheckpointError(f"{len(names)} names for {classes} classes: expected one for each")
    if isinstance(config, MixerConfig):
        return published_mixer(config, names)
    family = own_family(config)
    published = {key: getattr(config, field) for field, (key, _) in FIELDS[family].items()}
    head = getattr(config, "head", None)
    wanted = (family, None if head in ("pooling", POOLER) else head)
    published["architectures"] = [next(name for name, stands_for in ARCHITECTURES.items() if stands_for == wanted)]
    published["model_type"] = MODEL_TYPES.get(family, family)
    if family == "gpt":
        published["n_inner"] = config.mlp_width
    if family == "vit" or head == "classifier":
        names = names or [f"LABEL_{n}" for n in range(classes)]
        published["id2label"] = {str(n): name for n, name in enumerate(names)}
        published["label2id"] = {name: n for n, name in enumerate(names)}
    return published
