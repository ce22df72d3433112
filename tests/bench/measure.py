"""Measuring sides in the same run: rounds, medians, ratios, tables. Knows nothing of what a side does.

One side computes at a time, and they take turns: a machine that becomes slower becomes so for all of them.
"""

import datetime
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from server.host.processor import read_processor

FEATURES = ("avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")  # that decide the speed of matrix products


@dataclass(frozen=True)
class Side:
    """One way to do the work. `run` does one round and returns its rate in units per second."""

    name: str
    run: Callable[[], float]


@dataclass(frozen=True)
class Result:
    """The result of one side in one workload; `note` has remarks, or the reason if there is no result."""

    workload: str
    side: str
    rates: tuple[float, ...] = ()  # of each round, per second
    note: str = ""
    padding: float | None = None  # the share of padding in what was computed, if known

    @property
    def rate(self) -> float:
        return median(self.rates)


@dataclass(frozen=True)
class Target:
    """The target for the ratio of two medians."""

    workload: str
    side: str
    peer: str
    at_least: float

    def verdict(self, results: Sequence[Result]) -> str:
        """A line of the table of verdicts."""
        found = ratio(results, self)
        number = "–" if found is None else f"{found:.2f} ×"
        said = judged(found, lambda ratio: ratio >= self.at_least)
        return f"{self.workload} | {self.side} / {self.peer} | {number} | ≥ {self.at_least:g} × | {said}"


@dataclass(frozen=True)
class MostPadding:
    """The target for the share of padding of a side."""

    workload: str
    side: str
    at_most: float

    def verdict(self, results: Sequence[Result]) -> str:
        """A line of the table of verdicts."""
        own = (result for result in results if (result.workload, result.side) == (self.workload, self.side))
        found = next((result.padding for result in own), None)
        number = "–" if found is None else f"{found:.1%}"
        said = judged(found, lambda share: share <= self.at_most)
        return f"{self.workload} | padding of {self.side} | {number} | ≤ {self.at_most:.0%} | {said}"


def judged(found: float | None, enough: Callable[[float], bool]) -> str:
    if found is None:
        return "not measured"
    return "reached" if enough(found) else "missed"


def in_rounds(workload: str, sides: Sequence[Side], rounds: int) -> list[Result]:
    """Run every side once to warm up, then `rounds` times in turn, with another side first in each round."""
    for side in sides:
        side.run()
    return in_turns(workload, sides, rounds)


def in_turns(workload: str, sides: Sequence[Side], rounds: int) -> list[Result]:
    """Run `rounds` rounds with sides that are warm."""
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    for number in range(rounds):
        first = number % len(sides)
        for side in (*sides[first:], *sides[:first]):
            rates[side.name].append(side.run())
    return [Result(workload, side.name, tuple(rates[side.name])) for side in sides]


def table(results: Iterable[Result], unit: str = "per second") -> str:
    """Markdown: the median rate of each side, its range, its note."""
    lines = [f"| workload | side | {unit} | range | |", "|---|---|---|---|---|"]
    for result in results:
        found = "– | –"
        if result.rates:
            found = f"{result.rate:,.1f} | {min(result.rates):,.1f}–{max(result.rates):,.1f}"
        lines.append(f"| {result.workload} | {result.side} | {found} | {result.note} |")
    return "\n".join(lines)


def ratio(results: Sequence[Result], target: Target) -> float | None:
    """The median of the side over that of its peer; None if one of them is missing."""
    rates = {result.side: result.rate for result in results if result.workload == target.workload and result.rates}
    if target.side not in rates or target.peer not in rates:
        return None
    return rates[target.side] / rates[target.peer]


def verdicts(results: Sequence[Result], targets: Iterable[Target | MostPadding]) -> str:
    """Markdown: each target with the result; two sides are compared by the ratio of their medians."""
    lines = ["| workload | | found | target | |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {target.verdict(results)} |" for target in targets)])


def machine() -> str:
    """The machine and the date, in one line."""
    processor = read_processor()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    has = [feature for feature in FEATURES if feature in processor.instruction_sets]
    lacks = [feature for feature in FEATURES if feature not in processor.instruction_sets]
    said = f"{', '.join(has) or 'none'}; without {', '.join(lacks)}" if lacks else ", ".join(has)
    return f"{cpus} CPUs of {processor.name} ({said}), {datetime.date.today():%-d %B %Y}"


def write(path: Path, results: Sequence[Result]) -> None:
    """All rates, as JSON."""
    found = [asdict(result) for result in results]
    path.write_text(json.dumps({"machine": machine(), "results": found}, indent=2) + "\n")
