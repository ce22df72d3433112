"""Decides by measurements which of two ways to run a model is better, and which of many is the best. Pure.

A challenger replaces the present choice only if it is clearly faster: by the margin over all workloads, and in no
workload slower. So the choice is never slower than the default, with which the search starts.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

T = TypeVar("T")

MARGIN = 1.05  # the smallest speed-up that counts: two runs of one session differ by as much on a busy machine
SAME = 0.98  # in each workload a challenger has to be about as fast at least
CLEARLY_SLOWER, CLEARLY_FASTER = 0.85, 1.2  # after a few rounds; then no more of them are needed


@dataclass(frozen=True)
class Measurement:
    """The times of two choices in one workload: in seconds for the same work, one pair for each round."""

    workload: str
    pairs: tuple[tuple[float, float], ...]  # the present choice, the challenger

    @property
    def speedup(self) -> float:
        """How many times as fast the challenger is: the median over the rounds."""
        return median(ours / theirs for ours, theirs in self.pairs)


def speedup(measurements: Sequence[Measurement]) -> float:
    """How many times as fast the challenger is: the geometric mean over the workloads."""
    return math.exp(sum(math.log(each.speedup) for each in measurements) / len(measurements))


def replaces(measurements: Sequence[Measurement]) -> bool:
    """Whether the challenger is clearly faster."""
    return speedup(measurements) >= MARGIN and all(each.speedup >= SAME for each in measurements)


def is_clear(measurements: Sequence[Measurement]) -> bool:
    """Whether more rounds are unlikely to change which choice is better."""
    found = speedup(measurements)
    return found < CLEARLY_SLOWER or (found > CLEARLY_FASTER and replaces(measurements))


@dataclass(frozen=True)
class Found(Generic[T]):
    """The result of a search: the best choice, how many times as fast as the default it is, and what was compared."""

    best: T
    speedup: float
    compared: int = 0


def search(
    default: T,
    stages: Sequence[Callable[[T], Sequence[T]]],
    compare: Callable[[T, T], Sequence[Measurement]],
) -> Found[T]:
    """Let challengers compete with the best choice so far, stage by stage.

    Each stage derives its challengers from the best choice of the stages before. `compare` measures the best choice
    and a challenger; it returns nothing if the challenger cannot be measured.
    """
    best, gained, compared = default, 1.0, 0
    for stage in stages:
        for challenger in stage(best):
            if challenger == best or not (measured := compare(best, challenger)):
                continue
            compared += 1
            if replaces(measured):
                best, gained = challenger, gained * speedup(measured)
    return Found(best, gained, compared)
