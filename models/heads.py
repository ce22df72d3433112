"""The output of the stack: logits of tokens or classes, or one vector for a text.

Language heads can be computed at selected positions only.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.masks import real
from models.mlp import ACTIVATIONS


def select(x: Tensor, selected: Tensor | None) -> Tensor:
    """The rows of (b, t, d) at the flat positions `selected` (n), as (n, d); all of them, unchanged, if None.

    A position is `row · t + column`. The language head is a model's widest matrix, and most positions do not need it.
    """
    return x if selected is None else x.reshape(-1, x.shape[-1])[selected]


class LanguageHead(nn.Module):
    """Logits: the product of a position's vector with the vector of each token of the vocabulary (GPT).

    `embedding` is the token embedding itself (tied), or a matrix of the head's own.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return x @ self.embedding.weight.T  # (..., v)


class MaskedLanguageHead(nn.Module):
    """One more layer, then logits as in `LanguageHead`, with a bias for each token of the vocabulary (BERT)."""

    def __init__(self, embedding: nn.Embedding, *, activation: str, epsilon: float) -> None:
        super().__init__()
        vocabulary, width = embedding.weight.shape
        self.transform = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(width, epsilon)
        self.embedding = embedding
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return self.norm(self.activation(self.transform(x))) @ self.embedding.weight.T + self.bias  # (..., v)


class Pooler(nn.Module):
    """BERT's vector for a text: one more layer on its first token."""

    def __init__(self, width: int, activation: str = "tanh") -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        return self.activation(self.dense(x[:, 0]))  # (b, d)


class TextClassifier(nn.Module):
    """Logits of the classes of a text: the pooler's vector, then one matrix."""

    def __init__(self, width: int, classes: int, activation: str = "tanh") -> None:
        super().__init__()
        self.pooler = Pooler(width, activation)
        self.classes = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        return self.classes(self.pooler(x))  # (b, c)


# Pooling makes one vector for a text from those of its tokens. Most poolings are weighted sums over the real tokens and
# differ in the weights (b, t). `is_real` (b, t) is 1 for a real token and 0 for padding; n (b, 1) is the number of real
# tokens. Weights are computed in fp32: for a long text, the sum over token numbers exceeds the range of fp16.
WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda is_real, n: is_real / n,
    "mean-sqrt-length": lambda is_real, n: is_real / n.sqrt(),  # the norm grows with the length of the text
    "weighted-mean": lambda is_real, n: is_real * numbered(is_real) / (n * (n + 1) / 2),  # later tokens count more
    "last-token": lambda is_real, n: is_real * (numbered(is_real) == n).float(),
}
POOLINGS = ("first-token", "max", *WEIGHTS)


def numbered(is_real: Tensor) -> Tensor:
    """The number of each real token in its text, from 1. (It is not the position: RoBERTa counts those differently.)"""
    return is_real.cumsum(dim=1)  # (b, t)


def pool(x: Tensor, pooling: str, is_real: Tensor) -> Tensor:
    """One vector (b, d) from the real tokens of (b, t, d), by the name of the pooling."""
    match pooling:
        case "first-token":
            return x[:, 0]
        case "max":
            return x.masked_fill(is_real[..., None] == 0, float("-inf")).amax(dim=1)
    weights = WEIGHTS[pooling](is_real, is_real.sum(dim=1, keepdim=True))  # (b, t)
    return (x * weights[..., None].to(x.dtype)).sum(dim=1)


class Pooling(nn.Module):
    """A vector for a text: one pooling of its tokens' vectors, or several poolings concatenated."""

    def __init__(self, poolings: tuple[str, ...]) -> None:
        super().__init__()
        self.poolings = poolings

    def forward(self, x: Tensor, lengths: Tensor, columns: Tensor) -> Tensor:  # (b, t, d)
        is_real = real(lengths, columns).float()  # (b, t)
        return torch.cat([pool(x, pooling, is_real) for pooling in self.poolings], dim=-1)  # (b, d · poolings)


class Dense(nn.Module):
    """A linear layer with an activation on a text's vector, to another width or another space."""

    ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
        **ACTIVATIONS,
        "identity": lambda x: x,
    }

    def __init__(self, width: int, outputs: int, *, activation: str, bias: bool, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs, bias=bias)
        self.activation = self.ACTIVATIONS[activation]
        self.residual = None
        if residual:  # a skip connection, with a matrix where the widths differ
            self.residual = nn.Identity() if width == outputs else nn.Linear(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (b, d)
        y = self.activation(self.linear(x))
        return y if self.residual is None else y + self.residual(x)  # (b, outputs)


class Norm(nn.Module):
    """A layer norm on a text's vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:  # (b, d)
        return self.norm(x)


class Normalise(nn.Module):
    """Scale each vector to length 1. (In fp32: the square of a length can exceed the range of fp16.)"""

    def forward(self, x: Tensor) -> Tensor:  # (b, d)
        length = x.float().norm(dim=-1, keepdim=True)
        return (x.float() / length.clamp_min(1e-12)).to(x.dtype)


class FirstValues(nn.Module):
    """The first values of each vector, for Matryoshka models, which are trained to be truncated."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:  # (b, d)
        return x[:, : self.count]


class ImageClassifier(nn.Module):
    """Logits of the classes of an image: a matrix for each class token (ViT: one, DeiT: two), and their mean."""

    def __init__(self, width: int, classes: int, tokens: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in range(tokens))

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        logits = [classifier(x[:, n]) for n, classifier in enumerate(self.classifiers)]  # (b, c) each
        return sum(logits[1:], logits[0]) / len(logits)
