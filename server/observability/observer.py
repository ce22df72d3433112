"""Events within a model, for a listener such as server/observability/prometheus.py. Knows nothing of metrics.

An observer is made for one version of one model, so that nothing here carries names.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Where the time of a request went: into the whole of every batch that it was in. What is left it waited."""

    queue_seconds: float = 0.0
    collate_seconds: float = 0.0  # putting batches together
    run_seconds: float = 0.0
    split_seconds: float = 0.0  # taking their answers apart

    @property
    def seconds(self) -> float:
        return self.queue_seconds + self.collate_seconds + self.run_seconds + self.split_seconds

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(**{name: seconds + getattr(other, name) for name, seconds in asdict(self).items()})


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a request took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt: those whose keys and values were at hand
    queue_seconds: float  # until its prompt began to be read
    inference_seconds: float  # from then to the last token


class Observer(Protocol):
    """Called on the event loop; must return at once and never raise."""

    def batch(
        self, *, rows: int, tokens: int, padded_tokens: int, queue_seconds: Sequence[float], spent: Spent
    ) -> None:
        """One batch ran: how many rows, their own tokens, what they were padded to, how long each row waited."""

    def answered(self, spent: Spent) -> None:
        """All rows of a request were answered."""

    def failed(self, rows: int) -> None:
        """A run of so many rows failed."""

    def dropped(self, reason: str) -> None:
        """A row left the queue without running. Reasons: cancelled, expired, failed."""

    def refused(self, reason: str) -> None:
        """A request was not let in. Reasons: overloaded."""

    def step(self, *, kind: str, rows: int, tokens: int, seconds: float) -> None:
        """A step of generation ran.

        Kinds: `prefill` read so many tokens of one prompt, `decode` gave each of so many rows one token.
        """

    def finished(self, *, reason: str, usage: Usage) -> None:
        """A generation that had a slot has ended. Reasons: stop, length, cancelled (or out of time)."""


class NoOpObserver:
    """An observer that listens to nothing."""

    def batch(
        self, *, rows: int, tokens: int, padded_tokens: int, queue_seconds: Sequence[float], spent: Spent
    ) -> None: ...

    def answered(self, spent: Spent) -> None: ...

    def failed(self, rows: int) -> None: ...

    def dropped(self, reason: str) -> None: ...

    def refused(self, reason: str) -> None: ...

    def step(self, *, kind: str, rows: int, tokens: int, seconds: float) -> None: ...

    def finished(self, *, reason: str, usage: Usage) -> None: ...
