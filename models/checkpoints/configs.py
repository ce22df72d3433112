"""A published `config.json`, in the words of transformers or of timm, to one of our configurations, and back.

What would silently compute something else is refused by name. Knows no tensors and no files.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from models.checkpoints.errors import CheckpointError
from models.config import BertConfig, GptConfig, MixerConfig, StackConfig, VitConfig
from models.mlp import ACTIVATIONS

Json = Mapping[str, Any]
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
    "bert": {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    "gpt": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
            "tie_word_embeddings": True},
    "vit": {"qkv_bias": True},
}
# timm's architectures in timm's words; `model_args` and `pretrained_cfg` override them.
MIXER_DEFAULTS = {"img_size": 224, "in_chans": 3, "num_classes": 1000, "mlp_ratio": (0.5, 4.0)}
MIXERS: dict[str, dict[str, Any]] = {
    "mixer_s32_224": {"patch_size": 32, "num_blocks": 8,  "embed_dim": 512},
    "mixer_s16_224": {"patch_size": 16, "num_blocks": 8,  "embed_dim": 512},
    "mixer_b32_224": {"patch_size": 32, "num_blocks": 12, "embed_dim": 768},
    "mixer_b16_224": {"patch_size": 16, "num_blocks": 12, "embed_dim": 768},
    "mixer_l32_224": {"patch_size": 32, "num_blocks": 24, "embed_dim": 1024},
    "mixer_l16_224": {"patch_size": 16, "num_blocks": 24, "embed_dim": 1024},
}
MIXER_EXPECTED = {"global_pool": "avg", "stem_norm": False}
MIXER_HARMLESS = {"drop_rate", "proj_drop_rate", "drop_path_rate", "nlhb"}  # they matter in training alone
# fmt: on


def configuration(
    config: Json, *, pooling: str | None = None, normalise: bool = False
) -> tuple[str, BertConfig | GptConfig | VitConfig | MixerConfig]:
    """The family (bert, gpt, vit, mixer) and the sizes that a published `config.json` describes.

    `pooling` makes an encoder of any BERT: "mean", "first-token" or "pooler", its vector of length 1 if `normalise`.
    It is the caller's to say, for `config.json` does not (sentence-transformers keeps it in a file of its own).
    """
    try:
        if "architecture" in config:
            found: tuple[str, Any] = "mixer", mixer(config)
        else:
            family, head = architecture(config)
            found = family, READERS[family](config, head if pooling is None else pooling)
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"config.json: {error}") from error
    return found[0], with_pooling(found[1], pooling, normalise)


def with_pooling(ours: Any, pooling: str | None, normalise: bool) -> Any:
    """Refuse a pooling that is unknown or has nothing to pool; else note whether the vector is to have length 1."""
    if pooling is None and not normalise:
        return ours
    if pooling not in POOLINGS:
        raise CheckpointError(f"pooling is {pooling!r}: expected one of {', '.join(POOLINGS)}")
    if not isinstance(ours, BertConfig):
        raise CheckpointError(f"pooling is {pooling!r}, for {type(ours).__name__}: expected none, it is for BERT alone")
    return replace(ours, normalise=normalise)


def architecture(config: Json) -> tuple[str, str | None]:
    """The family that `architectures` names, and its head."""
    names = config.get("architectures") or ["nothing"]
    if names[0] not in ARCHITECTURES:
        known = ", ".join([*ARCHITECTURES, *MIXERS])
        raise CheckpointError(f"config.json: architectures names {names[0]}: expected one of {known}")
    family, head = ARCHITECTURES[names[0]]
    expect(config, {"model_type": MODEL_TYPES[family], "quantization_config": None, **EXPECTED[family]})
    return family, head


def expect(config: Json, expected: Json) -> None:
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"config.json: {key} is {config[key]!r}: expected {value!r}, nothing else is written")


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


def square(key: str, size: Any) -> Any:
    """One side of an image that some configurations give by both."""
    if not isinstance(size, Sequence):
        return size
    if len(set(size)) != 1:
        raise CheckpointError(f"config.json: {key} is {list(size)}: expected a square")
    return size[0]


def bert(config: Json, head: str | None) -> BertConfig:
    if head is None:
        known = ", ".join(POOLINGS)
        raise CheckpointError(
            f"config.json: architectures names BertModel, which has no head: expected pooling={known}"
        )
    if head == "masked-language":
        expect(config, {"tie_word_embeddings": True})
    classes = {"classes": len(labels(config))} if head == "classifier" else {}
    return BertConfig(**sizes(config, "bert"), **classes, head=head)


def gpt(config: Json, head: None) -> GptConfig:
    ours = sizes(config, "gpt")
    return GptConfig(**ours, mlp_width=config.get("n_inner") or 4 * ours["width"])


def vit(config: Json, head: None) -> VitConfig:
    return VitConfig(**sizes(config, "vit"), classes=len(labels(config)))


READERS = {"bert": bert, "gpt": gpt, "vit": vit}


def mixer(config: Json) -> MixerConfig:
    """timm's reading: the architecture's sizes, then what the weights were trained with, then `model_args`."""
    name = config["architecture"]
    if name not in MIXERS:
        known = ", ".join([*MIXERS, *ARCHITECTURES])
        raise CheckpointError(f"config.json: architecture is {name!r}: expected one of {known}")
    arguments = {**MIXER_DEFAULTS, **MIXERS[name], **trained_with(config), **(config.get("model_args") or {})}
    known = MIXER_DEFAULTS.keys() | MIXERS[name].keys() | MIXER_EXPECTED.keys()
    if unknown := sorted(arguments.keys() - known - MIXER_HARMLESS):
        raise CheckpointError(
            f"config.json: model_args has {', '.join(unknown)}: expected only {', '.join(sorted(known))}"
        )
    expect(arguments, MIXER_EXPECTED)
    expect(config, {"global_pool": "avg"})
    width, ratio = arguments["embed_dim"], arguments["mlp_ratio"]
    tokens, channels = ratio if isinstance(ratio, Sequence) else (ratio, ratio)
    return MixerConfig(
        width=width,
        depth=arguments["num_blocks"],
        token_mlp_width=int(tokens * width),
        mlp_width=int(channels * width),
        image_size=square("img_size", arguments["img_size"]),
        patch_size=square("patch_size", arguments["patch_size"]),
        channels=arguments["in_chans"],
        classes=arguments["num_classes"],
    )


def trained_with(config: Json) -> dict[str, Any]:
    """What timm takes from outside `model_args`: the input's size and the number of classes."""
    pretrained = config.get("pretrained_cfg") or {}
    arguments = {}
    if size := pretrained.get("input_size"):
        arguments = {"in_chans": size[0], "img_size": list(size[1:])}
    classes = config.get("num_classes", pretrained.get("num_classes"))
    return arguments if classes is None else {**arguments, "num_classes": classes}


def labels(config: Json) -> list[str]:
    """The name of each class; LABEL_0, LABEL_1 and so on where the file has none, as transformers calls them."""
    if "architecture" in config:
        names = config.get("label_names") or (config.get("pretrained_cfg") or {}).get("label_names")
        count = mixer(config).classes
    else:
        names, count = config.get("id2label"), config.get("num_labels")
        count = count if count is not None else len(names) if names else 2
    if not names:
        return [f"LABEL_{n}" for n in range(count)]
    if isinstance(names, Mapping):
        names = {int(key): name for key, name in names.items()}
        if sorted(names) != list(range(len(names))):
            raise CheckpointError(f"config.json: labels are numbered {sorted(names)}: expected 0 to {len(names) - 1}")
        names = [names[n] for n in range(len(names))]
    if len(names) != count:
        raise CheckpointError(f"config.json: {len(names)} labels for {count} classes: expected one for each")
    return [str(name) for name in names]


def published_config(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The `config.json` that describes `model`, its classes called `names`."""
    config = model.config
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
        names = names or [f"LABEL_{n}" for n in range(config.classes)]
        published["id2label"] = {str(n): name for n, name in enumerate(names)}
        published["label2id"] = {name: n for n, name in enumerate(names)}
    return published


def published_mixer(config: MixerConfig, names: Sequence[str] | None) -> dict[str, Any]:
    """timm's layout has no fields for the activation and the norm's epsilon: they are its architectures' own."""
    if (config.activation, config.norm_epsilon) != ("gelu", 1e-6):
        found = f"activation {config.activation}, norm_epsilon {config.norm_epsilon}"
        raise CheckpointError(f"MixerConfig has {found}: expected gelu and 1e-06, timm's layout cannot say another")
    return {
        "architecture": "mixer_b16_224",
        "num_classes": config.classes,
        "num_features": config.width,
        **({"label_names": list(names)} if names else {}),
        "model_args": {
            "img_size": config.image_size,
            "patch_size": config.patch_size,
            "in_chans": config.channels,
            "embed_dim": config.width,
            "num_blocks": config.depth,
            "mlp_ratio": [ratio(config.token_mlp_width, config.width), ratio(config.mlp_width, config.width)],
        },
        "pretrained_cfg": {
            "input_size": [config.channels, config.image_size, config.image_size],
            "fixed_input_size": True,
            "num_classes": config.classes,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
    }


def ratio(hidden: int, width: int) -> float:
    """The number by which timm multiplies `width`, and rounds down, to get `hidden`."""
    exact = hidden / width
    return exact if int(exact * width) == hidden else math.nextafter(exact, math.inf)
