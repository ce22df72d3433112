"""Everything that can be somebody's fault, and whose. Knows nothing of gRPC: server/status.py has the one table.

AffinityError
├── InvalidRequest      the request can never be answered as it is
├── ModelNotFound       no model, or no version, of that name
├── WrongTask           the model is there and does something else
├── Overloaded          no room now; `retry_after_s` says when to come back
├── NotReady            starting, loading or draining
├── DeadlineExceeded    the caller's time was up before the answer was there
├── BadArtifact         an artifact that cannot or must not be served
├── ProviderUnavailable an execution provider that was asked for by name and cannot run here
└── NotEnoughMemory     what was asked for does not fit
"""

FOUND_SHOWN = 200  # characters: what a caller sent can be long, and gRPC drops an answer whose error text is


class AffinityError(Exception):
    """The root of all errors a user, a file or a machine can cause. The text is meant for them."""


class InvalidRequest(AffinityError):
    """Names the field, what was found in it (not all of it, if it is long) and what was expected."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        if len(found) > FOUND_SHOWN:
            found = f"{found[:FOUND_SHOWN]}…"
        super().__init__(f"{field}: found {found}, expected {expected}")
        self.field = field


class ModelNotFound(AffinityError):
    """No model, or no version, of that name."""


class WrongTask(AffinityError):
    """The model is there and does something else."""


class Overloaded(AffinityError):
    """The queue is full."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(AffinityError):
    """Starting, loading or draining."""


class DeadlineExceeded(AffinityError):
    """The caller's time was up before the answer was there."""


class BadArtifact(AffinityError):
    """An artifact that cannot or must not be served."""


class ProviderUnavailable(AffinityError):
    """An execution provider that was asked for by name and cannot run here."""


class NotEnoughMemory(AffinityError):
    """What was asked for does not fit. At the start the text says how much would."""
