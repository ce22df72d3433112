"""Every preset has as many parameters as its publication says."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models import AttentionOnly, Bert, Gpt, Mixer, Vit
from models.config import BERT_PRESETS, GPT_PRESETS, MIXER_PRESETS, VIT_PRESETS, StackConfig

PRESETS = [(Bert, BERT_PRESETS), (Gpt, GPT_PRESETS), (Vit, VIT_PRESETS), (Mixer, MIXER_PRESETS)]

# fmt: off
TABLE = {
    # BERT, with the head for masked tokens: 30,522 biases and a layer of width² + 3·width more than the encoder alone
    (Bert, "tiny"):            141_888,
    (Bert, "bert-base"):   109_514_298,
    (Bert, "bert-large"):  335_174_458,
    (Gpt, "tiny"):             136_960,
    (Gpt, "gpt2"):         124_439_808,
    (Gpt, "gpt2-medium"):  354_823_168,
    (Gpt, "gpt2-large"):   774_030_080,
    (Gpt, "gpt2-xl"):    1_557_611_200,
    (Vit, "tiny"):             114_250,
    (Vit, "vit-b/16"):      86_567_656,
    (Vit, "vit-b/32"):      88_224_232,
    (Vit, "vit-l/16"):     304_326_632,
    (Mixer, "tiny"):            81_962,
    (Mixer, "mixer-b/16"):  59_880_472,
    (Mixer, "mixer-l/16"): 208_196_168,
}
ENCODERS = {  # BERT without a head for words, with the pooler
    "bert-base":  109_482_240,
    "bert-large": 335_141_888,
}
# fmt: on


def parameters(model: type[nn.Module], config: StackConfig) -> int:
    """Counted without the memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model(config).parameters())


def test_every_preset_is_in_the_table() -> None:
    assert TABLE.keys() == {(model, name) for model, presets in PRESETS for name in presets}


@pytest.mark.parametrize(("model", "presets"), PRESETS)
def test_presets_have_the_published_number_of_parameters(
    model: type[nn.Module], presets: dict[str, StackConfig]
) -> None:
    assert {name: parameters(model, config) for name, config in presets.items()} == {
        name: count for (kind, name), count in TABLE.items() if kind is model
    }


@pytest.mark.parametrize(("name", "count"), ENCODERS.items())
def test_bert_encoders_with_a_pooler_have_the_published_number_of_parameters(name: str, count: int) -> None:
    assert parameters(Bert, replace(BERT_PRESETS[name], head="pooler")) == count


def test_pooling_has_no_parameters() -> None:
    pooler = parameters(Bert, replace(BERT_PRESETS["bert-base"], head="pooler"))
    assert parameters(Bert, replace(BERT_PRESETS["bert-base"], head="pooling")) == pooler - (768**2 + 768)


def test_leaving_the_mlps_out_of_gpt2_leaves_a_third_of_its_blocks() -> None:
    per_mlp = 8 * 768**2 + 5 * 768 + 2 * 768  # with its biases and its norm
    assert parameters(AttentionOnly, GPT_PRESETS["gpt2"]) == TABLE[Gpt, "gpt2"] - 12 * per_mlp
