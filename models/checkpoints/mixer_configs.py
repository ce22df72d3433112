"""From timm's `config.json` of an MLP-Mixer to its configuration in `models`, and back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.checkpoints.errors import CheckpointError, Json, expect, square, whole_number
from models.config import MixerConfig

# fmt: off
# timm's architectures by timm's keys; `model_args` and `pretrained_cfg` override them.
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
MIXER_HARMLESS = {"drop_rate", "proj_drop_rate", "drop_path_rate", "nlhb"}  # they have an effect in training only
# fmt: on


def mixer(config: Json) -> MixerConfig:
    """As timm reads it: the architecture's sizes, overridden by those of the weights, then by `model_args`."""
    name = check_mixer(config["architecture"])
    overrides = {key: value for key, value in section(config, "model_args").items() if value is not None}
    arguments = {**MIXER_DEFAULTS, **MIXERS[name], **trained_with(config), **overrides}
    known = MIXER_DEFAULTS.keys() | MIXERS[name].keys() | MIXER_EXPECTED.keys()
    if unknown := sorted(arguments.keys() - known - MIXER_HARMLESS):
        raise CheckpointError(
            f"config.json: model_args has {', '.join(unknown)}: expected only {', '.join(sorted(known))}"
        )
    expect(arguments, MIXER_EXPECTED)
    expect(config, {"global_pool": "avg"})
    width, ratio = whole_number("embed_dim", arguments["embed_dim"]), arguments["mlp_ratio"]
    ratios = ratio if isinstance(ratio, list | tuple) else (ratio, ratio)
    if len(ratios) != 2 or not all(map(is_finite, ratios)):
        raise CheckpointError(f"config.json: mlp_ratio is {ratio!r}: expected a number, or two")
    tokens, channels = ratios
    return MixerConfig(
        width=width,
        depth=whole_number("num_blocks", arguments["num_blocks"]),
        token_mlp_width=int(tokens * width),
        mlp_width=int(channels * width),
        image_size=whole_number("img_size", square("img_size", arguments["img_size"])),
        patch_size=whole_number("patch_size", square("patch_size", arguments["patch_size"])),
        channels=whole_number("in_chans", arguments["in_chans"]),
        classes=whole_number("num_classes", arguments["num_classes"]),
    )


def is_finite(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, int | float):
        return False
    return isinstance(number, int) or math.isfinite(number)


def check_mixer(name: Any) -> str:
    """The name of one of timm's mixers. CheckpointError if it is another model of timm's."""
    if not isinstance(name, str) or name not in MIXERS:
        raise CheckpointError(f"config.json: architecture is {name!r}: expected one of {', '.join(MIXERS)}")
    return str(name)


def section(config: Json, key: str) -> Json:
    """An object within the file; empty if it is missing or null."""
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"config.json: {key} is {found!r}: expected an object")
    return found


def pretrained_settings(config: Json) -> Json:
    """The settings of the weights, which older files have at the top level."""
    return section(config, "pretrained_cfg") if "pretrained_cfg" in config else config


def trained_with(config: Json) -> dict[str, Any]:
    """The sizes that timm reads outside of `model_args`: the input's size and the number of classes."""
    pretrained = pretrained_settings(config)
    arguments = {}
    if size := pretrained.get("input_size"):
        if not isinstance(size, list) or len(size) != 3:
            raise CheckpointError(f"config.json: input_size is {size!r}: expected channels, height and width")
        arguments = {"in_chans": size[0], "img_size": list(size[1:])}
    classes = config.get("num_classes", pretrained.get("num_classes"))
    return arguments if classes is None else {**arguments, "num_classes": classes}


def published_mixer(config: MixerConfig, names: Sequence[str] | None) -> dict[str, Any]:
    """timm's `config.json`, in which the architecture fixes the activation and the epsilon of norms."""
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
