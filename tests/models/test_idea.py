"""The idea behind the models, sentence by sentence."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from models import AttentionOnly
from models.attention import SelfAttention, attend, softmax
from models.block import Block
from models.config import GPT_PRESETS
from models.mlp import Mlp
from models.stack import Stack


def identity(affinity: Tensor) -> Tensor:
    return affinity


def recorded(normalise: Callable[[Tensor], Tensor], record: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """The same, keeping what it gives."""

    def normalise_and_record(affinity: Tensor) -> Tensor:
        record.append(normalise(affinity))
        return record[-1]

    return normalise_and_record


def weights(module: nn.Module) -> int:
    """How many numbers its matrices hold: no biases, no norms."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim == 2)


def block_of_width_768() -> Block:
    attention, mlp = SelfAttention(768, heads=12), Mlp(768, 4 * 768, "gelu")
    return Block(attention, mlp, width=768, norm_first=True, epsilon=1e-5)


def test_without_softmax_and_scale_attention_is_x_xt_x() -> None:
    x = torch.randn(5, 16)
    attended = attend(x[None], x[None], x[None], heads=1, scale=1, normalise=identity)
    torch.testing.assert_close(attended[0], x @ x.T @ x)


def test_with_identity_matrices_self_attention_is_x_xt_x() -> None:
    x, attention = torch.randn(5, 16), SelfAttention(16, heads=1)
    for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        nn.init.eye_(matrix.weight)
        nn.init.zeros_(matrix.bias)
    attention.attend, attention.scale = partial(attend, normalise=identity), 1
    torch.testing.assert_close(attention(x[None])[0], x @ x.T @ x)


def test_softmax_turns_affinities_into_shares() -> None:
    shares = softmax(torch.randn(3, 4, 5))
    assert (shares > 0).all()
    torch.testing.assert_close(shares.sum(dim=-1), torch.ones(3, 4))


def test_by_default_attention_is_softmax_of_scaled_affinities_in_each_head() -> None:
    query, key, value = torch.randn(3, 2, 7, 12).unbind()
    heads = [
        torch.softmax(q @ k.transpose(1, 2) / 4**0.5, dim=-1) @ v
        for q, k, v in zip(query.split(4, -1), key.split(4, -1), value.split(4, -1), strict=True)
    ]
    torch.testing.assert_close(attend(query, key, value, heads=3), torch.cat(heads, dim=-1))


def test_a_masked_token_has_no_effect() -> None:
    query, key, value = torch.randn(3, 1, 4, 8).unbind()
    mask = torch.tensor([0.0, 0.0, 0.0, float("-inf")])
    torch.testing.assert_close(
        attend(query, key, value, mask, heads=2), attend(query, key[:, :3], value[:, :3], heads=2)
    )


def test_a_block_has_four_parts_of_attention_and_eight_of_mlp() -> None:
    block = block_of_width_768()
    assert weights(block.mix) == 3 * 768**2 + 768**2
    assert weights(block.mlp) == 8 * 768**2
    biases, norms = (3 + 1 + 4 + 1) * 768, 2 * 2 * 768
    assert sum(parameter.numel() for parameter in block.parameters()) == 12 * 768**2 + biases + norms


def test_twelve_blocks_are_85_million() -> None:
    with torch.device("meta"):
        stack = Stack((block_of_width_768() for _ in range(12)), width=768, norm_first=True, epsilon=1e-5)
    assert round(sum(parameter.numel() for parameter in stack.parameters()) / 1e6) == 85


def test_a_block_whose_halves_are_zero_is_the_identity() -> None:
    x = torch.randn(2, 3, 16)
    block = Block(SelfAttention(16, heads=2), Mlp(16, 64, "gelu"), width=16, norm_first=True, epsilon=1e-5)
    for last in (block.mix.out_proj, block.mlp.fc2):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    torch.testing.assert_close(block(x), x)


def test_norms_stand_before_each_half_or_after_it(randomised: Callable[[nn.Module], nn.Module]) -> None:
    parts = SelfAttention(16, heads=2), Mlp(16, 64, "gelu")
    first = randomised(Block(*parts, width=16, norm_first=True, epsilon=1e-5))
    last = Block(*parts, width=16, norm_first=False, epsilon=1e-5)
    last.load_state_dict(first.state_dict())
    x, (mix, mlp) = torch.randn(2, 3, 16), parts
    half = x + mix(first.norm_mix(x))
    torch.testing.assert_close(first(x), half + mlp(first.norm_mlp(half)))
    half = last.norm_mix(x + mix(x))
    torch.testing.assert_close(last(x), last.norm_mlp(half + mlp(half)))


@pytest.fixture
def attention_without_biases() -> SelfAttention:
    attention = SelfAttention(24, heads=3)
    for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        nn.init.zeros_(matrix.bias)
    return attention


def test_qk_alone_gives_the_affinities_of_each_head(attention_without_biases: SelfAttention) -> None:
    x, affinities = torch.randn(2, 5, 24), []
    attention_without_biases.attend = partial(attend, normalise=recorded(identity, affinities))
    attention_without_biases.scale = 1
    attention_without_biases(x)
    torch.testing.assert_close(x[:, None] @ attention_without_biases.qk @ x[:, None].mT, affinities[0])


def test_ov_alone_gives_what_each_head_adds(attention_without_biases: SelfAttention) -> None:
    x, shares = torch.randn(2, 5, 24), []
    attention_without_biases.attend = partial(attend, normalise=recorded(softmax, shares))
    output = attention_without_biases(x)
    torch.testing.assert_close((shares[0] @ x[:, None] @ attention_without_biases.ov).sum(dim=1), output)


def test_an_attention_only_transformer_has_no_mlp_weights() -> None:
    model = AttentionOnly(GPT_PRESETS["tiny"])
    width, depth = GPT_PRESETS["tiny"].width, GPT_PRESETS["tiny"].depth
    assert not [name for name, _ in model.named_parameters() if "mlp" in name]
    assert weights(model.stack) == depth * 4 * width**2


def test_heads_must_share_the_width_evenly() -> None:
    with pytest.raises(ValueError, match="width 64 cannot be cut into 5 heads"):
        SelfAttention(64, heads=5)
