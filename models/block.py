"""The block that every model here is made of. It knows no model by name."""

from torch import Tensor, nn


class Block(nn.Module):
    """First the positions exchange information, then an MLP treats each one alone; each half adds to its input.

        norm_first (GPT-2, ViT, Mixer)             norm last (the original, BERT)

        x ──┬─► norm ─► mix ─► + ──┬─► norm ─► mlp ─► +      x ──┬─► mix ─► + ─► norm ──┬─► mlp ─► + ─► norm
            └──────────────────┘   └─────────────────┘           └──────────┘           └──────────┘

    `mix` is the only part that looks across positions: self-attention, or an MLP over the positions. Without an `mlp`,
    this is the block of an attention-only transformer.
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
