"""A bad configuration is refused by field, what was found and what was expected."""

from dataclasses import replace

import pytest

from models import Gpt, Mixer, Vit
from models.config import BERT_PRESETS, GPT_PRESETS, MIXER_PRESETS, VIT_PRESETS, StackConfig

TINY_BERT, TINY_GPT, TINY_VIT, TINY_MIXER = (
    presets["tiny"] for presets in (BERT_PRESETS, GPT_PRESETS, VIT_PRESETS, MIXER_PRESETS)
)


# fmt: off
@pytest.mark.parametrize(("config", "field", "value", "expected"), [
    (TINY_BERT,  "width",           0,         "expected a whole number, at least 1"),
    (TINY_BERT,  "depth",           -1,        "expected a whole number, at least 1"),
    (TINY_BERT,  "heads",           4.0,       "expected a whole number, at least 1"),
    (TINY_BERT,  "vocabulary",      "512",     "expected a whole number, at least 1"),
    (TINY_BERT,  "mlp_width",       0,         "expected a whole number, at least 1"),
    (TINY_BERT,  "segments",        -1,        "expected a whole number, at least 0"),
    (TINY_GPT,   "mlp_width",       -1,        "expected a whole number, at least 0"),
    (TINY_VIT,   "mlp_width",       0,         "expected a whole number, at least 1"),
    (TINY_MIXER, "token_mlp_width", 0,         "expected a whole number, at least 1"),
    (TINY_GPT,   "norm_epsilon",    0.0,       "expected a number, more than 0"),
    (TINY_GPT,   "norm_epsilon",    "1e-5",    "expected a number, more than 0"),
    (TINY_GPT,   "activation",      "swash",   "expected one of gelu, gelu_python, gelu_new"),
    (TINY_BERT,  "head",            "oracle",  "expected one of masked-language, classifier, pooling, pooler"),
])
# fmt: on
def test_a_field_out_of_its_range_is_refused(config: StackConfig, field: str, value: object, expected: str) -> None:
    with pytest.raises(ValueError, match=f"{type(config).__name__}.{field} is {value!r}: {expected}"):
        replace(config, **{field: value})


def test_zero_is_allowed_for_optional_parts() -> None:
    assert replace(TINY_GPT, mlp_width=0).mlp_width == 0
    assert replace(TINY_BERT, segments=0).segments == 0


def test_incompatible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="width 64 cannot be cut into 7 heads"):
        Gpt(replace(TINY_GPT, heads=7))
    for kind, config in ((Vit, TINY_VIT), (Mixer, TINY_MIXER)):
        with pytest.raises(ValueError, match="image_size 32 is not a multiple of patch_size 7"):
            kind(replace(config, patch_size=7))
