"""Lines of the table, and how long something takes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One line of the table; the rate counts inputs, or tokens of continuations, in a second (median run)."""

    model: str
    what: str
    batch: int
    milliseconds: float
    per_second: float


def timed(run: Callable[[], object], runs: int) -> float:
    """The median of so many runs after a first one that does not count, in seconds."""
    run()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return median(seconds)
