"""BERT: words in, a mask over the padding only, norms last, and one of three kinds of head.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models import masks
from models.attention import SelfAttention
from models.block import Block, Stack
from models.config import BertConfig
from models.embed import TokenEmbedding
from models.heads import MaskedLanguageHead, Pooler, TextClassifier, mean_pooling, select
from models.mlp import Mlp


class Bert(nn.Module):
    """What it returns is its head's: see `forward`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        width, epsilon = config.width, config.norm_epsilon
        self.embed = TokenEmbedding(
            vocabulary=config.vocabulary,
            positions=config.positions,
            segments=config.segments,
            width=width,
            norm_epsilon=epsilon,
        )
        blocks = (
            Block(
                SelfAttention(width, config.heads),
                Mlp(width, config.mlp_width, config.activation),
                width=width,
                norm_first=False,
                epsilon=epsilon,
            )
            for _ in range(config.depth)
        )
        self.stack = Stack(blocks, width=width, norm_first=False, epsilon=epsilon)
        self.head = self._head()

    def _head(self) -> nn.Module | None:
        config = self.config
        match config.head:
            case "masked-language":
                return MaskedLanguageHead(self.embed.words, activation=config.activation, epsilon=config.norm_epsilon)
            case "classifier":
                return TextClassifier(config.width, config.classes, config.pooler_activation)
            case "pooler":
                return Pooler(config.width, config.pooler_activation)
        return None  # pooling by mean or first token has no weights

    def encode(
        self, input_ids: Tensor, lengths: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The stack alone: a vector for each token, (b, t, d)."""
        x = self.embed(input_ids, position_ids, token_type_ids)  # (b, t, d)
        return self.stack(x, masks.padding(lengths, position_ids).to(x.dtype))

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Run the model on `input_ids` (b, t), of which `lengths` (b) are real, the padding standing on the right.

        Returns by `config.head`: masked-language, logits (b, t, v), or (n, v) at the flat positions `selected`;
        classifier, logits (b, c); mean, first-token or pooler, an embedding (b, d), of length 1 if `config.normalise`.
        """
        b, t = input_ids.shape
        if lengths is None:
            lengths = torch.full((b,), t, device=input_ids.device)
        if position_ids is None:
            position_ids = torch.arange(t, device=input_ids.device)[None]
        x = self.encode(input_ids, lengths, position_ids, token_type_ids)  # (b, t, d)
        match self.config.head:
            case "masked-language":
                return self.head(select(x, selected))
            case "classifier":
                return self.head(x)
            case "pooler":
                embedding = self.head(x)
            case "first-token":
                embedding = x[:, 0]
            case _:
                embedding = mean_pooling(x, lengths, position_ids)
        return functional.normalize(embedding, dim=-1) if self.config.normalise else embedding
