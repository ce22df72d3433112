"""The sizes in a published `config.json`: the fields of `models.config` and the keys of transformers."""

import math
from typing import Any

from models.checkpoints.errors import CheckpointError, Json, square, whole_number
from models.mlp import ACTIVATIONS

# fmt: off
# Field: its published key and, if transformers has one, its default. Sizes have none: a wrong number of heads would fit
# every tensor.
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
# Switches, which are published only if they differ from transformers' default.
SWITCHES: dict[str, dict[str, tuple[str, bool]]] = {
    "bert": {
        "tied_head":        ("tie_word_embeddings",             True),
    },
    "gpt": {
        "tied_head":        ("tie_word_embeddings",             True),
        "scale_by_width":   ("scale_attn_weights",              True),
        "scale_by_layer":   ("scale_attn_by_inverse_layer_idx", False),
    },
    "vit": {
        "qkv_bias":         ("qkv_bias",                        True),
    },
}
SWITCHES |= {"roberta": SWITCHES["bert"], "distilbert": SWITCHES["bert"], "deit": SWITCHES["vit"], "nanogpt": {}}
# fmt: on


def sizes(config: Json, family: str) -> dict[str, Any]:
    """The fields that have a published key with the same meaning."""
    ours = {}
    for field, (key, default) in FIELDS[family].items():
        value = config.get(key, default)
        if value is None:
            raise CheckpointError(f"config.json: {key} is missing: expected a value for it")
        if field == "activation" and not (isinstance(value, str) and value in ACTIVATIONS):
            raise CheckpointError(f"config.json: {key} is {value!r}: expected one of {', '.join(ACTIVATIONS)}")
        if field in ("image_size", "patch_size"):
            value = square(key, value)
        if field == "norm_epsilon":
            value = number(key, value)
        elif field != "activation":
            value = whole_number(key, value)
        ours[field] = value
    return ours | switches(config, family)


def number(key: str, value: Any) -> float:
    """A finite float, which JSON may write as an integer."""
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer that no float can have
        pass
    raise CheckpointError(f"config.json: {key} is {value!r}: expected a number")


def switches(config: Json, family: str) -> dict[str, bool]:
    """The switches."""
    ours = {}
    for field, (key, default) in SWITCHES[family].items():
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"config.json: {key} is {value!r}: expected true or false")
        ours[field] = default if value is None else value
    return ours
