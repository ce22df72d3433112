"""Rows of the table, and timing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One row of the table. The rate is in inputs, or generated tokens, per second (of the median run)."""

    model: str
    what: str
    batch: int
    milliseconds: float
    per_second: float
    share: float | None = None  # of the rate at which the device multiplies large matrices


def timed(run: Callable[[], object], runs: int) -> float:
    """The median time of the runs after a warm-up run, in seconds."""
    run()
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


def table(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = ["| model | | batch | ms | per second | of matrix products |", "|---|---|---|---|---|---|"]
    for row in rows:
        share = "" if row.share is None else f"{row.share:.0%}"
        lines.append(
            f"| {row.model} | {row.what} | {row.batch} | {row.milliseconds:.2f} | {row.per_second:,.0f} | {share} |"
        )
    return "\n".join(lines)
