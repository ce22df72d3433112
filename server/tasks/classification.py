"""From logits to named classes, the likeliest first: what both kinds of classification have in common."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.concurrency.offload import offload
from server.errors import InvalidRequest

MAX_CLASSES = 1 << 18  # of all inputs of a request: some megabytes of an answer, and tenths of a second to write it
LOGITS_PER_CLASS = 16  # so many are scored and sorted in the time in which one class is made of them


class Class(NamedTuple):
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


async def ranked(
    logits: Sequence[NDArray[np.float32]], scores: Function, labels: Sequence[str], *, top_k: int, threads: Executor
) -> list[list[Class]]:
    """For each input the `top_k` best classes by the scores of its logits (c), the likeliest first."""
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
    """How many classes to tell of each input: all if it is left open. InvalidRequest if that is none, or too many."""
    most = len(labels) if top_k is None else min(check_top_k(top_k), len(labels))
    if inputs * most > MAX_CLASSES:
        found = f"{most} classes of each of {inputs} inputs"
        raise InvalidRequest("top_k", found, f"at most {MAX_CLASSES} in a request")
    return most


def check_top_k(top_k: int) -> int:
    if top_k < 1:
        raise InvalidRequest("top_k", str(top_k), "1 or more")
    return top_k
