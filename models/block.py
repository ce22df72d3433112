"""The block, and the stack of blocks that every model here is. Knows no model by name."""

from collections.abc import Iterable

from torch import Tensor, nn


class Block(nn.Module):
    """Let positions exchange information, then let each position think; each half adds to what was there.

        norm_first (GPT-2, ViT, Mixer)             norm last (the original, BERT)

        x ──┬─► norm ─► mix ─► + ──┬─► norm ─► mlp ─► +      x ──┬─► mix ─► + ─► norm ──┬─► mlp ─► + ─► norm
            └──────────────────┘   └─────────────────┘           └──────────┘           └──────────┘

    `mix` is the only part that looks across positions: self-attention, or an MLP over the positions. Without an `mlp`
    it is the block of an attention-only transformer.
    """

    def __init__(self, mix: nn.Module, mlp: nn.Module | None, *, width: int, norm_first: bool, epsilon: float) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.mix = mix
        self.norm_mix = nn.LayerNorm(width, epsilon)
        self.mlp = mlp
        self.norm_mlp = None if mlp is None else nn.LayerNorm(width, epsilon)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # x: (b, t, d)
        if self.norm_first:
            x = x + self.mix(self.norm_mix(x), mask)
            return x if self.mlp is None else x + self.mlp(self.norm_mlp(x))
        x = self.norm_mix(x + self.mix(x, mask))
        return x if self.mlp is None else self.norm_mlp(x + self.mlp(x))


class Stack(nn.Module):
    """Blocks, one after the other. Where norms come first the sum that runs past them is normalised once at the end."""

    def __init__(self, blocks: Iterable[Block], *, width: int, norm_first: bool, epsilon: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, epsilon) if norm_first else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # x: (b, t, d)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)
