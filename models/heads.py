"""From the stack back to the world: a word, a class or a vector. Language heads can be asked at some positions only."""

from collections.abc import Callable

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
    """The affinity of a position's vector for each word's vector (GPT).

    `words` is the embedding matrix, used backwards, or in some models a matrix of the head's own.
    """

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words = words

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return x @ self.words.weight.T  # (..., v)


class MaskedLanguageHead(nn.Module):
    """One more layer, then the embedding matrix backwards or one of the head's own, a bias for each word (BERT)."""

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


# From a vector for each token to one for the text. Most poolings are weighted sums over the real tokens and differ in
# the weight of each token, (b, t). `is_real` (b, t) is 1 for a real token and 0 for padding; n (b, 1) is the number of
# real tokens. Weights are computed in fp32: the numbers of the tokens of a long text add up to more than fp16 holds.
WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda is_real, n: is_real / n,
    "mean-sqrt-length": lambda is_real, n: is_real / n.sqrt(),  # long texts have long vectors, but not n times as long
    "weighted-mean": lambda is_real, n: is_real * numbered(is_real) / (n * (n + 1) / 2),  # late tokens have seen more
    "last-token": lambda is_real, n: is_real * (numbered(is_real) == n).float(),
}
POOLINGS = ("first-token", "max", *WEIGHTS)


def numbered(is_real: Tensor) -> Tensor:
    """The number of each real token in its text, from 1. (Positions do not say it: some models count differently.)"""
    return is_real.cumsum(dim=1)  # (b, t)


def pool(x: Tensor, pooling: str, is_real: Tensor) -> Tensor:
    """One vector (b, d) for the real tokens of (b, t, d), by the name of the pooling."""
    match pooling:
        case "first-token":
            return x[:, 0]
        case "max":
            return x.masked_fill(is_real[..., None] == 0, float("-inf")).amax(dim=1)
    weights = WEIGHTS[pooling](is_real, is_real.sum(dim=1, keepdim=True))  # (b, t)
    return (x * weights[..., None].to(x.dtype)).sum(dim=1)


class Pooling(nn.Module):
    """A vector for a text: its tokens' vectors, pooled in one way, or in several whose vectors are joined."""

    def __init__(self, poolings: tuple[str, ...]) -> None:
        super().__init__()
        self.poolings = poolings

    def forward(self, x: Tensor, lengths: Tensor, columns: Tensor) -> Tensor:  # (b, t, d)
        is_real = real(lengths, columns).float()  # (b, t)
        return torch.cat([pool(x, pooling, is_real) for pooling in self.poolings], dim=-1)  # (b, d · poolings)


class Dense(nn.Module):
    """One more layer on a text's vector, for another width or another space."""

    ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
        **ACTIVATIONS,
        "identity": lambda x: x,
    }

    def __init__(self, width: int, outputs: int, *, activation: str, bias: bool, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs, bias=bias)
        self.activation = self.ACTIVATIONS[activation]
        self.residual = None
        if residual:  # past the layer, by a matrix of its own where the widths differ
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
    """Scale each vector to length 1. (In fp32: the square of a length is soon more than fp16 holds.)"""

    def forward(self, x: Tensor) -> Tensor:  # (b, d)
        length = x.float().norm(dim=-1, keepdim=True)
        return (x.float() / length.clamp_min(1e-12)).to(x.dtype)


class FirstValues(nn.Module):
    """The beginning of each vector, for models that were trained so that it says nearly as much as the whole."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:  # (b, d)
        return x[:, : self.count]


class ImageClassifier(nn.Module):
    """A class for an image: a matrix for each token that is read (ViT has one, DeiT two), the mean of their logits."""

    def __init__(self, width: int, classes: int, tokens: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in range(tokens))

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        logits = [classifier(x[:, n]) for n, classifier in enumerate(self.classifiers)]  # (b, c) each
        return sum(logits[1:], logits[0]) / len(logits)
