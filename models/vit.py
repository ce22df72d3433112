"""ViT: patches of 16 × 16 pixels in place of tokens, no mask, norms first, and a class out. The rest is BERT.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020.
"""

from torch import Tensor, nn

from models.config import VitConfig
from models.embed import ClassTokensAndPositions, PatchEmbedding
from models.heads import ImageClassifier
from models.stack import attention_stack


class Vit(nn.Module):
    """The class of an image of one fixed size."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = PatchEmbedding(
            image_size=config.image_size, patch_size=config.patch_size, channels=config.channels, width=width
        )
        self.class_tokens = ClassTokensAndPositions(tokens=config.class_tokens, patches=self.embed.count, width=width)
        self.stack = attention_stack(config, norm_first=True, qkv_bias=config.qkv_bias)
        self.head = ImageClassifier(width, config.classes, config.classifiers)

    def forward(self, pixel_values: Tensor) -> Tensor:  # (b, channels, image_size, image_size)
        """Logits of the classes, (b, c), computed from the class token."""
        x = self.class_tokens(self.embed(pixel_values))  # (b, 1 + t, d)
        return self.head(self.stack(x))
