"""MLP-Mixer: ViT with the attention replaced by an MLP across positions, and a mean in place of the class token.

It works nearly as well, with one caveat: it takes images of one size only, for its weights belong to positions.

Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021.
"""

from torch import Tensor, nn

from models.block import Block, Stack
from models.config import MixerConfig
from models.embed import PatchEmbedding
from models.mlp import Mlp, TokenMixing


class Mixer(nn.Module):
    """Looks at an image of one fixed size and says which class it shows."""

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
        """Logits of the classes, (b, c), read off the mean of all patches."""
        return self.head(self.stack(self.embed(pixel_values)).mean(dim=1))
