"""GPT: words in, a mask over the future, norms first, and the next word out.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019.
"""

import torch
from torch import Tensor, nn

from models import masks
from models.attention import SelfAttention
from models.block import Block, Stack
from models.config import GptConfig
from models.embed import TokenEmbedding
from models.heads import LanguageHead, select
from models.mlp import Mlp


class Gpt(nn.Module):
    """Reads a text and says at each position which word it expects next."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.config = config
        width, epsilon = config.width, config.norm_epsilon
        self.embed = TokenEmbedding(vocabulary=config.vocabulary, positions=config.positions, width=width)
        blocks = (
            Block(
                SelfAttention(width, config.heads, scale=config.attention_scale(layer)),
                Mlp(width, config.mlp_width, config.activation) if config.mlp_width else None,
                width=width,
                norm_first=True,
                epsilon=epsilon,
            )
            for layer in range(config.depth)
        )
        self.stack = Stack(blocks, width=width, norm_first=True, epsilon=epsilon)
        self.head = LanguageHead(self.embed.words if config.tied_head else nn.Embedding(config.vocabulary, width))

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, selected: Tensor | None = None) -> Tensor:
        """Logits of the word after each of `input_ids` (b, t): (b, t, v), or (n, v) at the flat positions `selected`.

        No token sees what follows it, so padding on the right needs no mask of its own.
        """
        t = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(t, device=input_ids.device)[None]
        x = self.embed(input_ids, position_ids)  # (b, t, d)
        x = self.stack(x, masks.causal(t, input_ids.device).to(x.dtype))
        return self.head(select(x, selected))
