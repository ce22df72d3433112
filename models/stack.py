"""The stack of blocks that every model here is, and the one call that builds it for BERT, GPT and ViT."""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from models.attention import SelfAttention
from models.block import Block
from models.config import AttentionConfig
from models.mlp import Mlp


class Stack(nn.Module):
    """Blocks, one after the other. With norms first, the residual sum is normalised once more at the end."""

    def __init__(self, blocks: Iterable[Block], *, width: int, norm_first: bool, epsilon: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, epsilon) if norm_first else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # x: (b, t, d)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


def attention_stack(
    config: AttentionConfig, *, norm_first: bool, qkv_bias: bool = True, scales: Sequence[float] | None = None
) -> Stack:
    """`config.depth` blocks of self-attention and an MLP; `mlp_width=0` leaves the MLPs out.

    `scales` has a factor for the affinities of each block, 1/√k by default.
    """
    width, epsilon = config.width, config.norm_epsilon
    blocks = (
        Block(
            SelfAttention(width, config.heads, scale=scales[n] if scales else None, qkv_bias=qkv_bias),
            Mlp(width, config.mlp_width, config.activation) if config.mlp_width else None,
            width=width,
            norm_first=norm_first,
            epsilon=epsilon,
        )
        for n in range(config.depth)
    )
    return Stack(blocks, width=width, norm_first=norm_first, epsilon=epsilon)
