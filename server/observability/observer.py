"""Events inside a model, for an observer such as the one in server/observability/prometheus.py.

An observer belongs to one version of one model, so the events carry no names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from server.errors import Overloaded


@dataclass(frozen=True, kw_only=True)
class TimeSpent:
    """Where the time of a request went. It is charged for every batch it was part of; the rest is queueing time."""

    queue_seconds: float = 0.0
    collate_seconds: float = 0.0  # building batches
    run_seconds: float = 0.0
    split_seconds: float = 0.0  # splitting the outputs of batches

    @property
    def seconds(self) -> float:
        return self.queue_seconds + self.collate_seconds + self.run_seconds + self.split_seconds

    def __add__(self, other: "TimeSpent") -> "TimeSpent":
        return TimeSpent(
            queue_seconds=self.queue_seconds + other.queue_seconds,
            collate_seconds=self.collate_seconds + other.collate_seconds,
            run_seconds=self.run_seconds + other.run_seconds,
            split_seconds=self.split_seconds + other.split_seconds,
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Token counts and times of a generated sequence."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # prompt tokens whose keys and values were in the prefix cache
    queue_seconds: float  # until its prefill started
    inference_seconds: float  # from then to the last token


class Observer(Protocol):
    """Receives the events. Methods run on the event loop; they must return at once and never raise."""

    def batch(
        self, *, items: int, tokens: int, padded_tokens: int, queue_seconds: Sequence[float], spent: TimeSpent
    ) -> None:
        """A batch ran: its items, their tokens without and with padding, and how long each item waited."""

    def answered(self, spent: TimeSpent) -> None:
        """All items of a request were answered."""

    def failed(self, items: int) -> None:
        """A batch of `items` items, or a step of as many sequences, failed."""

    def dropped(self, reason: str) -> None:
        """An item left the queue without running. Reasons: cancelled, expired, slow_client, failed, overloaded."""

    def refused(self, reason: str) -> None:
        """A request was refused. Reasons: overloaded."""

    def step(self, *, kind: str, sequences: int, tokens: int, seconds: float) -> None:
        """A generation step ran.

        Kinds: `prefill` processed `tokens` tokens of one prompt, `decode` produced one token for each sequence.
        """

    def finished(self, *, reason: str, usage: Usage) -> None:
        """A sequence that had a slot has ended. Reasons: stop, length, slow_client, cancelled (or expired)."""


class NoOpObserver:
    """An observer that ignores all events."""

    def batch(
        self, *, items: int, tokens: int, padded_tokens: int, queue_seconds: Sequence[float], spent: TimeSpent
    ) -> None: ...

    def answered(self, spent: TimeSpent) -> None: ...

    def failed(self, items: int) -> None: ...

    def dropped(self, reason: str) -> None: ...

    def refused(self, reason: str) -> None: ...

    def step(self, *, kind: str, sequences: int, tokens: int, seconds: float) -> None: ...

    def finished(self, *, reason: str, usage: Usage) -> None: ...


class counting_refusals:  # noqa: N801  # a function to its users
    """Notify the observer if the `with` block refuses a request with Overloaded."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, Overloaded):
            self._observer.refused("overloaded")
