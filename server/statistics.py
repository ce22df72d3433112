"""Running totals of one version of one model, as plain numbers: what Triton's statistics and metrics are made of."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Total:
    """How often, and how long altogether."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.seconds += seconds


@dataclass
class BatchTotal:
    """Batches of one size."""

    collate: Total = field(default_factory=Total)
    run: Total = field(default_factory=Total)


@dataclass
class Statistics:
    """Since the server started. Requests are counted at the front door, inputs and batches behind the queue.

    Times of inputs are summed as Triton sums them: each input that was in a batch spent the whole time of the batch.
    """

    success: Total = field(default_factory=Total)  # requests
    failure: Total = field(default_factory=Total)
    failures: Counter[str] = field(default_factory=Counter)  # by Triton's reason
    queue: Total = field(default_factory=Total)  # inputs, or prompts
    collate: Total = field(default_factory=Total)  # inputs
    run: Total = field(default_factory=Total)  # inputs, or continuations in the steps of generation
    inputs: int = 0  # that ran, or continuations that ended
    executions: int = 0  # batches, or steps of generation
    batches: dict[int, BatchTotal] = field(default_factory=dict)  # by inputs
    last_request_ms: int = 0  # since the epoch

    def request(self, *, failure: str, seconds: float) -> None:
        """A request is over. `failure` is Triton's reason, empty if it was answered."""
        self.last_request_ms = int(time.time() * 1000)
        if failure:
            self.failure.add(seconds)
            self.failures[failure] += 1
        else:
            self.success.add(seconds)

    def batch(self, *, rows: int, queue_seconds: Sequence[float], collate_seconds: float, run_seconds: float) -> None:
        """A batch ran."""
        self.inputs += rows
        self.queue.add(sum(queue_seconds), len(queue_seconds))
        self.collate.add(collate_seconds * rows, rows)
        self._executed(rows, run_seconds)
        self.batches[rows].collate.add(collate_seconds)

    def step(self, *, rows: int, seconds: float) -> None:
        """A step of generation ran."""
        self._executed(rows, seconds)

    def generation(self, *, queue_seconds: float) -> None:
        """A continuation ended."""
        self.inputs += 1
        self.queue.add(queue_seconds)

    def _executed(self, rows: int, seconds: float) -> None:
        self.executions += 1
        self.run.add(seconds * rows, rows)
        self.batches.setdefault(rows, BatchTotal()).run.add(seconds)
