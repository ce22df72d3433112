"""The errors that users, files and machines can cause. Independent of gRPC: server/status.py maps them to codes.

AffinityError
├── InvalidRequest      the request is invalid and will fail again if it is sent again
├── ModelNotFound       no model, or no version, of that name
├── WrongTask           the model exists, but serves another task
├── Overloaded          the queue is full, or the answer would be too late; `retry_after_s` says when to retry
├── NotReady            starting, loading or draining
├── ModelControlOff     a request to load or unload a model, which the settings do not allow
├── Unauthenticated     no valid token, where one is necessary
├── PermissionDenied    a valid token of a client that may not do this
├── DeadlineExceeded    the deadline passed before the answer was ready
├── SlowClient          the client did not read its responses for too long
├── BadArtifact         an artifact that cannot be served
├── ProviderUnavailable an execution provider that was required and cannot run here
└── NotEnoughMemory     the model or the request does not fit into memory
"""

import collections.abc
import os
import pathlib

LONGEST_PART = 200  # characters of a field's name or of a value in an error text


def drop_tracebacks(error: BaseException) -> None:
    """Drop the tracebacks of an error that was handled, and those of its causes.

    The frames of a traceback refer to the request and the model. Futures, and objects of those frames, refer to the
    error: without this a failed request would keep its model in memory until the garbage collector finds the cycle.
    """
    errors, done = [error], set()
    while errors:
        error = errors.pop()
        if id(error) not in done:
            done.add(id(error))
            error.__traceback__ = None
            errors += [cause for cause in (error.__cause__, error.__context__) if cause is not None]


def shorten(text: str) -> str:
    """A text for an error message, cut if it is long."""
    return text if len(text) <= LONGEST_PART else f"{text[:LONGEST_PART]}…"


def hide_directory(text: str, directory: pathlib.Path) -> str:
    """The text of an error without a directory of the server, which clients do not need to know."""
    text = text.replace(f"{directory}{os.sep}", "")
    return text.replace(str(directory), "the server's directory") if directory.is_absolute() else text


class AffinityError(Exception):
    """The base class of all errors that a user, a file or a machine can cause. Its text is shown to users."""


class InvalidRequest(AffinityError):
    """Names the field, the value found (both shortened if they are long) and the value expected."""

    def __init__(self, field: str, found: str, expected: str) -> None:
        super().__init__(f"{shorten(field)}: found {shorten(found)}, expected {expected}")
        self.field = field


class ModelNotFound(AffinityError):
    """No model, or no version, of that name."""

    @classmethod
    def unknown(cls, name: str, served: collections.abc.Iterable[str]) -> "ModelNotFound":
        """No model of that name is among those that are served."""
        known = ", ".join(sorted(served)) or "none"
        return cls(f"model: found {name!r}, expected one of those that are served: {known}")


class WrongTask(AffinityError):
    """The model exists, but serves another task."""


class Overloaded(AffinityError):
    """The queue is full, or the answer is predicted to be too late."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotReady(AffinityError):
    """Starting, loading or draining."""


class ModelControlOff(AffinityError):
    """A request to load or unload a model, which the settings do not allow."""


class Unauthenticated(AffinityError):
    """No valid token, where one is necessary."""


class PermissionDenied(AffinityError):
    """A valid token of a client that may not do this."""


class DeadlineExceeded(AffinityError):
    """The deadline passed before the answer was ready."""


class SlowClient(AffinityError):
    """The client did not read its responses for too long."""


class BadArtifact(AffinityError):
    """An artifact that cannot be served."""


class ProviderUnavailable(AffinityError):
    """An execution provider that was required and cannot run here."""


class NotEnoughMemory(AffinityError):
    """The model or the request does not fit into memory. At start the text says what would fit."""
