"""GPT: tokens in, a mask over the future, norms first, and the next token out.

Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), 2019.
"""

import torch
from torch import Tensor, nn

from models import masks
from models.config import GptConfig
from models.embed import TokenEmbedding
from models.heads import LanguageHead, select
from models.stack import attention_stack


class Gpt(nn.Module):
    """At each position of a text, logits of the token that comes next."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(vocabulary=config.vocabulary, positions=config.positions, width=config.width)
        scales = [config.attention_scale(n) for n in range(config.depth)]
        self.stack = attention_stack(config, norm_first=True, scales=scales)
        self.head = LanguageHead(
            self.embed.tokens if config.tied_head else nn.Embedding(config.vocabulary, config.width)
        )

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None, selected: Tensor | None = None) -> Tensor:
        """Logits of the token after each of `input_ids` (b, t): (b, t, v), or (n, v) at the flat positions `selected`.

        No token attends to later ones, so padding on the right needs no mask of its own.
        """
        t = input_ids.shape[1]
        if position_ids is None:
            position_ids = torch.arange(t, device=input_ids.device)[None]
        x = self.embed(input_ids, position_ids)  # (b, t, d)
        x = self.stack(x, masks.causal(t, input_ids.device).to(x.dtype))
        return self.head(select(x, selected))
