"""Running totals of one version of one model, as plain numbers: what Triton's statistics and metrics are made of."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.observability.observer import Spent, Usage


@dataclass
class Total:
    """How often, and how long altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Work:
    """Where time went: putting batches together, running them, taking their answers apart."""

    collate: Total = field(default_factory=Total)
    run: Total = field(default_factory=Total)
    split: Total = field(default_factory=Total)

    def add(self, spent: Spent) -> None:
        self.collate.add(spent.collate_seconds)
        self.run.add(spent.run_seconds)
        self.split.add(spent.split_seconds)


@dataclass
class Statistics:
    """Since the server started, counted as Triton counts.

    Times are those of requests that were answered, however many inputs they had: each spent the whole time of every
    batch that it was in, and what is left it waited. A generation runs from its first step to its last.
    """

    success: Total = field(default_factory=Total)  # requests, from the front door to the last answer
    failure: Total = field(default_factory=Total)
    failures: Counter[str] = field(default_factory=Counter)  # by Triton's reason
    queue: Total = field(default_factory=Total)  # requests
    work: Work = field(default_factory=Work)  # on requests
    inputs: int = 0  # that ran, or continuations that came to their end
    executions: int = 0  # batches, or steps of generation
    batches: dict[int, Work] = field(default_factory=dict)  # on batches and steps, by their inputs
    last_request_ms: int = 0  # since the epoch

    def request(self, *, failure: str, seconds: float) -> None:
        """A request is over. `failure` is Triton's reason, empty if it was answered."""
        self.last_request_ms = int(time.time() * 1000)
        if failure:
            self.failure.add(seconds)
            self.failures[failure] += 1
        else:
            self.success.add(seconds)

    def answered(self, spent: Spent) -> None:
        """A request was answered."""
        self.queue.add(spent.queue_seconds)
        self.work.add(spent)

    def generated(self, usages: Sequence[Usage]) -> None:
        """A request to generate was answered: with one continuation, or several that ran side by side."""
        self.inputs += len(usages)
        waited = min(usage.queue_seconds for usage in usages)
        ended = max(usage.queue_seconds + usage.inference_seconds for usage in usages)
        self.answered(Spent(queue_seconds=waited, run_seconds=ended - waited))

    def batch(self, rows: int, spent: Spent) -> None:
        """A batch ran."""
        self.inputs += rows
        self.step(rows, spent)

    def step(self, rows: int, spent: Spent) -> None:
        """A step of generation ran."""
        self.executions += 1
        self.batches.setdefault(rows, Work()).add(spent)
