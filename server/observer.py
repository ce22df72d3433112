"""What happens inside, told to whoever counts it. Knows nothing of metrics: server/metrics.py is one listener.

An observer is made for one version of one model, so that nothing here carries names.
"""

from collections.abc import Callable, Sequence
from typing import Protocol


class Observer(Protocol):
    """Called on the event loop; must return at once and never raise."""

    def batch(
        self,
        *,
        rows: int,
        tokens: int,
        padded_tokens: int,
        queue_seconds: Sequence[float],
        collate_seconds: float,
        run_seconds: float,
    ) -> None:
        """One batch ran: how many rows, their own tokens, what they were padded to, how long each row waited."""

    def failed(self, rows: int) -> None:
        """A run of so many rows failed."""

    def dropped(self, reason: str) -> None:
        """A row left the queue without running. Reasons: cancelled, expired, failed."""

    def refused(self, reason: str) -> None:
        """A request was not let in. Reasons: overloaded."""


class Silent:
    """An observer that listens to nothing."""

    def batch(
        self,
        *,
        rows: int,
        tokens: int,
        padded_tokens: int,
        queue_seconds: Sequence[float],
        collate_seconds: float,
        run_seconds: float,
    ) -> None: ...

    def failed(self, rows: int) -> None: ...

    def dropped(self, reason: str) -> None: ...

    def refused(self, reason: str) -> None: ...


Observe = Callable[[str, str], Observer]  # model, version → the observer of that version


def silence(model: str, version: str) -> Observer:
    """The `Observe` of a server that nobody measures."""
    return Silent()
