"""From logits to named classes, the likeliest first: what both kinds of classification have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.errors import InvalidRequest


@dataclass(frozen=True)
class Class:
    label: str
    class_id: int
    score: float


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that sum to one, over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each score for itself."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))))


def none(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits


Function = Callable[[NDArray[np.float32]], NDArray[np.float32]]
FUNCTIONS: dict[str, Function] = {"softmax": softmax, "sigmoid": sigmoid, "none": none}
DEFAULT = "default"


def scores_of(asked: str, of_the_model: str) -> Function:
    """The function that makes scores of logits: the one asked for, or the model's own for `default` (or nothing)."""
    name = of_the_model if asked in ("", DEFAULT) else asked
    if name not in FUNCTIONS:
        raise InvalidRequest("function_to_apply", repr(asked), f"one of {', '.join((DEFAULT, *FUNCTIONS))}")
    return FUNCTIONS[name]


def rank(scores: NDArray[np.float32], labels: Sequence[str], *, top_k: int) -> list[Class]:
    """The `top_k` best classes by the scores (c) of one input."""
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Class(labels[number], int(number), float(scores[number])) for number in best]


def check_top_k(top_k: int) -> int:
    if top_k < 1:
        raise InvalidRequest("top_k", str(top_k), "1 or more")
    return top_k
