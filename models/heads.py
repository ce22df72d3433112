"""From the stack back to the world: a word, a class or a vector. Language heads can be asked at some positions only."""

import torch
from torch import Tensor, nn

from models.masks import real
from models.mlp import ACTIVATIONS


def select(x: Tensor, selected: Tensor | None) -> Tensor:
    """The rows of (b, t, d) at the flat positions `selected` (n), as (n, d); all of them, unchanged, if None.

    A position is `row · t + column`. The language head is the model's widest matrix: most positions do not need it.
    """
    return x if selected is None else x.reshape(-1, x.shape[-1])[selected]


class LanguageHead(nn.Module):
    """The affinity of a position's vector for each word's vector: the embedding matrix, used backwards (GPT)."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words = words

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return x @ self.words.weight.T  # (..., v)


class MaskedLanguageHead(nn.Module):
    """One more layer, then the embedding matrix backwards, with a bias for each word (BERT)."""

    def __init__(self, words: nn.Embedding, *, activation: str, epsilon: float) -> None:
        super().__init__()
        vocabulary, width = words.weight.shape
        self.transform = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(width, epsilon)
        self.words = words
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return self.norm(self.activation(self.transform(x))) @ self.words.weight.T + self.bias  # (..., v)


class Pooler(nn.Module):
    """BERT's summary of a text: one more layer on its first token."""

    def __init__(self, width: int, activation: str = "tanh") -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        return self.activation(self.dense(x[:, 0]))  # (b, d)


class TextClassifier(nn.Module):
    """A class for a text: the pooler's summary, then one matrix."""

    def __init__(self, width: int, classes: int, activation: str = "tanh") -> None:
        super().__init__()
        self.pooler = Pooler(width, activation)
        self.classes = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        return self.classes(self.pooler(x))  # (b, c)


def mean_pooling(x: Tensor, lengths: Tensor, position_ids: Tensor) -> Tensor:
    """The mean of each row's real tokens."""
    weight = real(lengths, position_ids).to(x.dtype)[..., None]  # (b, t, 1)
    return (x * weight).sum(dim=1) / lengths[:, None].to(x.dtype)  # (b, d)


class ImageClassifier(nn.Module):
    """A class for an image: a matrix for each token that is read (ViT has one, DeiT two), the mean of their logits."""

    def __init__(self, width: int, classes: int, tokens: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in range(tokens))

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        logits = [classifier(x[:, n]) for n, classifier in enumerate(self.classifiers)]  # (b, c) each
        return sum(logits[1:], logits[0]) / len(logits)
