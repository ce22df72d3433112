"""The load of a soak: calls at a rate, each answer compared with the answer of an idle server."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from tests.bench.soak.calls import Call, same

DEADLINES_S = (None, 2.0, 4.0)
CALLERS = 16  # of the closed loop that measures what the server can take
RIGHT, WRONG = "right", "wrong"
# What a server may do that is overloaded, or that reloads the model; all other errors are faults.
EXPECTED = {"RESOURCE_EXHAUSTED": "refused", "DEADLINE_EXCEEDED": "expired", "UNAVAILABLE": "reloading"}
EXPECTED |= {"NOT_FOUND": "reloading"}
OUTCOMES = (RIGHT, "refused", "expired", "reloading", WRONG, "failed")


@dataclass
class Tally:
    """Outcomes by kind of call, and descriptions of the first faults."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def count(self, kind: str, outcome: str, fault: str = "") -> None:
        self.outcomes.setdefault(kind, Counter())[outcome] += 1
        if fault and len(self.faults) < 20:
            self.faults.append(f"{kind}: {fault}")

    def total(self, outcome: str) -> int:
        return sum(counter[outcome] for counter in self.outcomes.values())

    def table(self) -> str:
        """Markdown: a row for each kind of call."""
        lines = [f"| calls | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * len(OUTCOMES)}"]
        for kind, counter in sorted(self.outcomes.items()):
            lines.append(f"| {kind} | {' | '.join(str(counter[outcome]) for outcome in OUTCOMES)} |")
        return "\n".join(lines)


class Traffic:
    """Sends calls and judges the answers."""

    def __init__(self, calls: Sequence[Call], tally: Tally, seed: int = 0) -> None:
        self._calls, self._tally = calls, tally
        self._random = random.Random(seed)
        self._expected: dict[int, Any] = {}

    async def take_references(self) -> None:
        """Send each call to the idle server, one after the other."""
        for number, call in enumerate(self._calls):
            self._expected[number] = await call.send(None)

    async def capacity(self, seconds: float) -> float:
        """Calls per second that `CALLERS` get answered, each of which sends its next call after an answer."""
        end, answered = time.monotonic() + seconds, 0

        async def caller() -> None:
            nonlocal answered
            while time.monotonic() < end:
                await self._one(None)
                answered += 1

        started = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return answered / (time.monotonic() - started)

    async def send_at(self, rate: float, seconds: float) -> None:
        """Send calls at random times, `rate` a second, whether earlier ones are answered or not, and await them all."""
        begin = due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while (due := due + self._random.expovariate(rate)) < begin + seconds:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                group.create_task(self._one(self._random.choice(DEADLINES_S)))

    async def _one(self, timeout_s: float | None) -> None:
        number = self._random.randrange(len(self._calls))
        call = self._calls[number]
        try:
            found = await call.send(timeout_s)
        except grpc.aio.AioRpcError as error:
            outcome = EXPECTED.get(error.code().name, "failed")
            fault = f"{error.code().name}: {error.details()}" if outcome == "failed" else ""
            self._tally.count(call.kind, outcome, fault)
        else:
            right = same(found, self._expected[number])
            fault = "" if right else f"{call.model}: found {found!r:.200}, expected {self._expected[number]!r:.200}"
            self._tally.count(call.kind, RIGHT if right else WRONG, fault)
