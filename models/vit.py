"""ViT: 16 × 16 patches are the words, no mask, norms first, and a class out. The rest is BERT.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020.
"""

from torch import Tensor, nn

from models.attention import SelfAttention
from models.block import Block, Stack
from models.config import VitConfig
from models.embed import ClassTokensAndPositions, PatchEmbedding
from models.heads import ImageClassifier
from models.mlp import Mlp


class Vit(nn.Module):
    """Looks at an image of one fixed size and says which class it shows."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        width, epsilon = config.width, config.norm_epsilon
        self.embed = PatchEmbedding(
            image_size=config.image_size, patch_size=config.patch_size, channels=config.channels, width=width
        )
        self.mark = ClassTokensAndPositions(tokens=config.class_tokens, patches=self.embed.count, width=width)
        blocks = (
            Block(
                SelfAttention(width, config.heads, qkv_bias=config.qkv_bias),
                Mlp(width, config.mlp_width, config.activation),
                width=width,
                norm_first=True,
                epsilon=epsilon,
            )
            for _ in range(config.depth)
        )
        self.stack = Stack(blocks, width=width, norm_first=True, epsilon=epsilon)
        self.head = ImageClassifier(width, config.classes, config.classifiers)

    def forward(self, pixel_values: Tensor) -> Tensor:  # (b, channels, image_size, image_size)
        """Logits of the classes, (b, c), read off the class token."""
        x = self.mark(self.embed(pixel_values))  # (b, 1 + t, d)
        return self.head(self.stack(x))
