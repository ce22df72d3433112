"""Running totals of one version of a model, as plain numbers: the source of Triton's statistics and metrics."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.observability.observer import TimeSpent, Usage


@dataclass
class Total:
    """A count of events and the sum of their durations."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Work:
    """Time by phase: building batches, running them, splitting their outputs."""

    collate: Total = field(default_factory=Total)
    run: Total = field(default_factory=Total)
    split: Total = field(default_factory=Total)

    def add(self, spent: TimeSpent) -> None:
        self.collate.add(spent.collate_seconds)
        self.run.add(spent.run_seconds)
        self.split.add(spent.split_seconds)


@dataclass
class Statistics:
    """Totals since the server started, by Triton's rules.

    Times are per answered request, however many inputs it had: a request is charged the whole time of every batch it
    was part of, and the rest is queueing time. A generation runs from its first step to its last.
    """

    success: Total = field(default_factory=Total)  # requests, from arrival to the last answer
    failure: Total = field(default_factory=Total)
    failures: Counter[str] = field(default_factory=Counter)  # by Triton's reason
    queue: Total = field(default_factory=Total)  # requests
    work: Work = field(default_factory=Work)  # charged to requests
    inputs: int = 0  # inputs that ran, or sequences that finished
    executions: int = 0  # batches, or generation steps
    batches: dict[int, Work] = field(default_factory=dict)  # by batch size, of batches and generation steps
    last_request_ms: int = 0  # since the epoch

    def request(self, *, failure: str, seconds: float) -> None:
        """A request ended. `failure` is Triton's reason, empty if the request succeeded."""
        self.last_request_ms = int(time.time() * 1000)
        if failure:
            self.failure.add(seconds)
            self.failures[failure] += 1
        else:
            self.success.add(seconds)

    def answered(self, spent: TimeSpent) -> None:
        """A request was answered."""
        self.queue.add(spent.queue_seconds)
        self.work.add(spent)

    def generated(self, usages: Sequence[Usage]) -> None:
        """A generation request was answered, with one sequence or several that ran in parallel."""
        self.inputs += len(usages)
        waited = min(usage.queue_seconds for usage in usages)
        ended = max(usage.queue_seconds + usage.inference_seconds for usage in usages)
        self.answered(TimeSpent(queue_seconds=waited, run_seconds=ended - waited))

    def batch(self, items: int, spent: TimeSpent) -> None:
        """A batch ran."""
        self.inputs += items
        self.step(items, spent)

    def step(self, size: int, spent: TimeSpent) -> None:
        """A batch or generation step of this size ran."""
        self.executions += 1
        self.batches.setdefault(size, Work()).add(spent)
