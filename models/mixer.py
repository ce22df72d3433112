"""MLP-Mixer: ViT with an MLP across positions in place of attention, and a mean in place of the class token.

It works nearly as well, with one limit: its weights belong to positions, so it takes images of one size only.

Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021.
"""

from torch import Tensor, nn

from models.block import Block
from models.config import MixerConfig
from models.embed import PatchEmbedding
from models.mlp import Mlp, TokenMixing
from models.stack import Stack


class Mixer(nn.Module):
    """The class of an image of one fixed size."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.config = config
        width, epsilon = config.width, config.norm_epsilon
        self.embed = PatchEmbedding(
            image_size=config.image_size, patch_size=config.patch_size, channels=config.channels, width=width
        )
        blocks = (
            Block(
                TokenMixing(self.embed.count, config.token_mlp_width, config.activation),
                Mlp(width, config.mlp_width, config.activation),
                width=width,
                norm_first=True,
                epsilon=epsilon,
            )
            for _ in range(config.depth)
        )
        self.stack = Stack(blocks, width=width, norm_first=True, epsilon=epsilon)
        self.head = nn.Linear(width, config.classes)

    def forward(self, pixel_values: Tensor) -> Tensor:  # (b, channels, image_size, image_size)
        """Logits of the classes, (b, c), computed from the mean over all patches."""
        return self.head(self.stack(self.embed(pixel_values)).mean(dim=1))
