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
    """Since the server started. Requests are counted at the front door, rows and batches behind the queue."""

    success: Total = field(default_factory=Total)
    failure: Total = field(default_factory=Total)
    failures: Counter[str] = field(default_factory=Counter)  # by Triton's reason
    queue: Total = field(default_factory=Total)  # rows, and how long they waited
    collate: Total = field(default_factory=Total)  # batches, and how long they took to put together
    run: Total = field(default_factory=Total)  # batches, or steps of generation, and how long they ran
    rows: int = 0  # inputs that ran, or continuations that ended
    batches: dict[int, BatchTotal] = field(default_factory=dict)  # by rows
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
        self.rows += rows
        self.queue.add(sum(queue_seconds), len(queue_seconds))
        self.collate.add(collate_seconds)
        self.run.add(run_seconds)
        same_size = self.batches.setdefault(rows, BatchTotal())
        same_size.collate.add(collate_seconds)
        same_size.run.add(run_seconds)

    def generation(self, *, queue_seconds: float) -> None:
        """A continuation ended."""
        self.rows += 1
        self.queue.add(queue_seconds)
