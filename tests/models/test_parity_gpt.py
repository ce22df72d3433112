"""GPT gives the outputs of transformers and of nanoGPT with the same weights.

Checkpoints are saved and loaded as files, as users do, and all parameters are random.
"""

from pathlib import Path

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from models.checkpoints import CheckpointError, load
from tests import nanogpt
from tests.models.parity import AssertParity, Saved, small_gpt2, without_initial_values

pytestmark = pytest.mark.usefixtures("without_gradients")


def test_distilgpt2_is_gpt2_with_half_the_blocks(saved: Saved, assert_parity: AssertParity) -> None:
    reference, text = without_initial_values(GPT2LMHeadModel, GPT2Config(n_layer=6)), torch.randint(0, 50257, (2, 24))
    model = load(saved(reference))
    assert sum(parameter.numel() for parameter in model.parameters()) == 81_912_576  # the published number
    assert_parity(model(text), reference(text).logits)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("n_inner", [None, 96])
def test_gpt2(activation: str, n_inner: int | None, saved: Saved, assert_parity: AssertParity) -> None:
    reference = GPT2LMHeadModel(small_gpt2(activation_function=activation, n_inner=n_inner))
    text = torch.randint(0, 500, (3, 40))
    assert_parity(load(saved(reference))(text), reference(text).logits)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt(bias: bool, prefix: str, assert_parity: AssertParity, tmp_path: Path) -> None:
    """Compiled models have the prefix `_orig_mod.`"""
    arguments = {**nanogpt.SIZES, "vocab_size": 65, "bias": bias}
    reference, text = nanogpt.random_model(**arguments), torch.randint(0, 65, (3, 32))
    with torch.enable_grad():
        nanogpt.save(tmp_path / "ckpt.pt", reference, arguments, prefix)
    assert_parity(load(tmp_path / "ckpt.pt")(text), reference(text))


def test_early_checkpoints_of_nanogpt_without_a_bias_setting_have_the_gelu_of_gpt2(
    saved: Saved, assert_parity: AssertParity, tmp_path: Path
) -> None:
    reference, text = GPT2LMHeadModel(small_gpt2(layer_norm_epsilon=1e-5)), torch.randint(0, 500, (3, 40))
    saved(reference)
    wide = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {name: x.T if name.endswith(wide) else x for name, x in reference.state_dict().items()}
    state |= {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 40, 40).tril() for n in range(3)}
    sizes = {"n_layer": 3, "n_head": 4, "n_embd": 64, "block_size": 40, "vocab_size": 500, "dropout": 0.0}
    torch.save({"model": state, "model_args": sizes}, tmp_path / "ckpt.pt")
    assert_parity(load(tmp_path / "ckpt.pt")(text), reference(text).logits)


def test_gpt2_of_the_published_size(saved: Saved, assert_parity: AssertParity) -> None:
    reference, text = without_initial_values(GPT2LMHeadModel, GPT2Config()), torch.randint(0, 50257, (2, 24))
    assert_parity(load(saved(reference))(text), reference(text).logits)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"state_dict": {}}, "found state_dict, expected model and model_args, as nanoGPT saves them"),
        ([1], "found a list, expected model and model_args"),
        ({"model": {}, "model_args": {"n_layer": 2}}, "found no n_head, n_embd, block_size, vocab_size in model_args"),
    ],
)
def test_a_file_in_another_layout_is_refused(contents: object, message: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "ckpt.pt")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "ckpt.pt")
