"""BERT: tokens in, a mask over the padding only, norms last, and one of several heads.

Source: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2018.
"""

import torch
from torch import Tensor, nn

from models import masks
from models.config import BertConfig, DenseLayer, FirstValuesLayer, NormaliseLayer, NormLayer, VectorLayer
from models.embed import TokenEmbedding
from models.heads import (
    Dense,
    FirstValues,
    MaskedLanguageHead,
    Norm,
    Normalise,
    Pooler,
    Pooling,
    TextClassifier,
    select,
)
from models.stack import attention_stack


class Bert(nn.Module):
    """The head, and with it the task, is the choice of the configuration: see `forward`."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(
            vocabulary=config.vocabulary,
            positions=config.positions + config.pad_position,
            segments=config.segments,
            width=config.width,
            norm_epsilon=config.norm_epsilon,
        )
        self.stack = attention_stack(config, norm_first=False)
        self.head = self._head()
        self.vector_layers = nn.Sequential(*map(vector_layer, config.vector_layers, config.vector_widths))

    def _head(self) -> nn.Module:
        config = self.config
        match config.head:
            case "masked-language":
                embedding = self.embed.tokens if config.tied_head else nn.Embedding(config.vocabulary, config.width)
                activation = config.head_activation or config.activation
                return MaskedLanguageHead(embedding, activation=activation, epsilon=config.norm_epsilon)
            case "classifier":
                return TextClassifier(config.width, config.classes, config.pooler_activation)
            case "pooler":
                return Pooler(config.width, config.pooler_activation)
        return Pooling(config.poolings)

    def encode(
        self, input_ids: Tensor, lengths: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """The stack without the head: a vector for each token, (b, t, d)."""
        x = self.embed(input_ids, position_ids, token_type_ids)  # (b, t, d)
        return self.stack(x, masks.padding(lengths, self.columns(position_ids)).to(x.dtype))

    def columns(self, position_ids: Tensor) -> Tensor:
        """The number of each column, from 0: its position, but for RoBERTa, which does not count padding tokens."""
        return masks.columns(position_ids) if self.config.pad_position else position_ids

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Run the model on `input_ids` (b, t), whose rows have `lengths` (b) real tokens and padding on the right.

        The result depends on `config.head`. masked-language: logits (b, t, v), or (n, v) at the flat positions
        `selected`. classifier: logits (b, c). pooling or pooler: one vector for each text, after its layers.
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
                return self.vector_layers(self.head(x))
        return self.vector_layers(self.head(x, lengths, self.columns(position_ids)))


def vector_layer(layer: VectorLayer, width: int) -> nn.Module:
    """The layer that a configuration describes, for vectors (b, width)."""
    match layer:
        case DenseLayer():
            return Dense(width, layer.width, activation=layer.activation, bias=layer.bias, residual=layer.residual)
        case NormLayer():
            return Norm(width)
        case NormaliseLayer():
            return Normalise()
        case FirstValuesLayer():
            return FirstValues(layer.width)
