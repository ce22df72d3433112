"""The sides of one workload: their processes, their answers, and those that were skipped."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.measure import Result, Side, in_rounds
from tests.bench.processes import Missing, cpu_seconds, peer

Round = Callable[[], tuple[float, Sequence[int]]]  # seconds, and the best token or class for each input


class Workload:
    """Collects sides, measures them, and compares their answers with those of the first side."""

    def __init__(self, name: str, wanted: Sequence[str], stack: ExitStack) -> None:
        self.name = name
        self.paddings: dict[str, Callable[[], float]] = {}  # the share of padding in what a side has run
        self._wanted, self._stack = wanted, stack
        self._sides: list[Side] = []
        self._skipped: list[Result] = []
        self._best: dict[str, Sequence[int]] = {}
        self._spent: dict[str, list[float]] = {}  # seconds of CPU for each input, by round

    def add(self, name: str, run: Round, pid: int) -> None:
        """Add a side, and the process that does its work."""
        spent = self._spent[name] = []

        def rate() -> float:
            before = cpu_seconds(pid)
            seconds, self._best[name] = run()
            count = len(self._best[name])
            spent.append((cpu_seconds(pid) - before) / count)
            print(f"  {name}: {count / seconds:,.1f} per second, {spent[-1] * 1e3:,.0f} ms of CPU each", flush=True)
            return count / seconds

        self._sides.append(Side(name, rate))

    def add_peer(self, name: str, environment: str, module: str, *arguments: str | Path, **request: Any) -> None:
        """Add a peer, which does a round of work for each request."""
        if running := self.open(name, environment, module, *arguments):

            def run() -> tuple[float, Sequence[int]]:
                found = running.ask(**request)
                if "padding" in found:
                    self.paddings[name] = lambda: found["padding"]
                return found["seconds"], found["best"]

            self.add(name, run, running.pid)

    def open(self, name: str, environment: str, module: str, *arguments: str | Path) -> Any:
        """The peer; None if it was not selected, or cannot run here, which the results report."""
        if name not in self._wanted:
            return None
        print(f"{self.name}: opening {name} …", flush=True)
        try:
            return self._stack.enter_context(peer(environment, module, *arguments))
        except Missing as reason:
            self._skipped.append(Result(self.name, name, note=f"skipped: {reason}"))
            return None

    def fastest(self, names: Sequence[str]) -> str:
        """Run these sides once, and return the name of the fastest."""
        return max((side for side in self._sides if side.name in names), key=lambda side: side.run()).name

    def measured(self, rounds: int) -> list[Result]:
        print(f"{self.name}: measuring {len(self._sides)} sides …", flush=True)
        results = in_rounds(self.name, self._sides, rounds)
        return [self._told(result) for result in results] + self._skipped

    def _told(self, result: Result) -> Result:
        padding = self.paddings[result.side]() if result.side in self.paddings else None
        return replace(result, note=self._note(result.side, padding), padding=padding)

    def _note(self, side: str, padding: float | None) -> str:
        reference = self._sides[0].name
        same = [a == b for a, b in zip(self._best[side], self._best[reference], strict=True)]
        notes = [f"{median(self._spent[side]) * 1e3:,.0f} ms of CPU each"]
        notes += [f"{sum(same) / len(same):.0%} the same answer as {reference}"] if side != reference else []
        return "; ".join([*notes, *([] if padding is None else [f"{padding:.1%} padding"])])
