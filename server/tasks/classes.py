"""From logits to named classes, the likeliest first: what both kinds of classification have in common."""

from collections.abc import Sequence
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


SCORES = {"softmax": softmax, "sigmoid": sigmoid, "none": none}


def rank(logits: NDArray[np.float32], labels: Sequence[str], *, function: str, top_k: int) -> list[Class]:
    """The `top_k` likeliest classes for the logits (c) of one input."""
    scores = SCORES[function](logits)
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [Class(labels[number], int(number), float(scores[number])) for number in best]


def check_top_k(top_k: int) -> int:
    if top_k < 1:
        raise InvalidRequest("top_k", str(top_k), "1 or more")
    return top_k
