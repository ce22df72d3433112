"""Turns logits into labelled classes, most likely first; shared by the classification of texts and of images."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.concurrency.offload import offload
from server.errors import InvalidRequest

MAX_CLASSES = 1 << 18  # over all inputs of a request: a few megabytes of response, and tenths of a second to write it
LOGITS_PER_CLASS = 16  # scoring and sorting so many logits takes as long as creating one `Class`


class Class(NamedTuple):
    label: str
    class_id: int
    score: float


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores that sum to one, over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """A score for each class, independent of the others."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits, -80, 80))))


def identity(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """The logits themselves."""
    return logits


Function = Callable[[NDArray[np.float32]], NDArray[np.float32]]
FUNCTIONS: dict[str, Function] = {"softmax": softmax, "sigmoid": sigmoid, "none": identity}
DEFAULT = "default"


def score_function(requested: str, default: str) -> Function:
    """The function that turns logits into scores: the requested one; the model's own for `default` or an empty name."""
    name = default if requested in ("", DEFAULT) else requested
    if name not in FUNCTIONS:
        raise InvalidRequest("function_to_apply", repr(requested), f"one of {', '.join((DEFAULT, *FUNCTIONS))}")
    return FUNCTIONS[name]


async def ranked(
    logits: Sequence[NDArray[np.float32]], scores: Function, labels: Sequence[str], *, top_k: int, threads: Executor
) -> list[list[Class]]:
    """For each input, whose logits have shape (c,), the `top_k` classes with the highest scores, highest first."""
    work = partial(_ranked, logits, scores, labels, top_k)
    return await offload(threads, work, items=len(logits) * (top_k + len(labels) // LOGITS_PER_CLASS))


def _ranked(
    logits: Sequence[NDArray[np.float32]], scores: Function, labels: Sequence[str], top_k: int
) -> list[list[Class]]:
    return [_rank(scores(each), labels, top_k) for each in logits]


def _rank(scores: NDArray[np.float32], labels: Sequence[str], top_k: int) -> list[Class]:
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [
        Class(labels[number], number, score) for number, score in zip(best.tolist(), scores[best].tolist(), strict=True)
    ]


def check_classes(top_k: int | None, labels: Sequence[str], *, inputs: int) -> int:
    """The number of classes to return for each input, all of them by default. InvalidRequest for none or too many."""
    count = len(labels) if top_k is None else min(check_top_k(top_k), len(labels))
    if inputs * count > MAX_CLASSES:
        found = f"{count} classes of each of {inputs} inputs"
        raise InvalidRequest("top_k", found, f"at most {MAX_CLASSES} in a request")
    return count


def check_top_k(top_k: int) -> int:
    if top_k < 1:
        raise InvalidRequest("top_k", str(top_k), "1 or more")
    return top_k
