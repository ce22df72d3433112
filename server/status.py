"""The table from errors to gRPC status codes. No other module chooses a status code."""

import logging
from dataclasses import dataclass

import grpc

from server import errors
from server.admission.queue import CancelReason

RETRY_AFTER = "retry-after-ms"  # trailing metadata of RESOURCE_EXHAUSTED: how long to wait before a retry
INTERNAL_TEXT = "internal error; the server's log has the details"

STATUS: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongTask: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.SlowClient: grpc.StatusCode.ABORTED,
    errors.BadArtifact: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProviderUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotEnoughMemory: grpc.StatusCode.FAILED_PRECONDITION,
}

# gRPC cancels a call when its deadline expires and when its client disconnects, the server when its client is slow.
CANCEL_STATUSES: dict[CancelReason, grpc.StatusCode] = {
    "expired": grpc.StatusCode.DEADLINE_EXCEEDED,
    "cancelled": grpc.StatusCode.CANCELLED,
    "slow_client": grpc.StatusCode.ABORTED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ErrorStatus:
    """The status of a failed call."""

    code: grpc.StatusCode
    text: str
    trailers: tuple[tuple[str, str], ...] = ()


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code of an error; INTERNAL if the table does not have it."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return grpc.StatusCode.INTERNAL


def error_status(error: BaseException, *, path: str) -> ErrorStatus:
    """The status for an error in the method at `path`. Unknown errors are logged, and clients get a fixed text."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        log.error("%s failed", path, exc_info=error)
        return ErrorStatus(code, INTERNAL_TEXT)
    if isinstance(error, errors.Overloaded):
        return ErrorStatus(code, str(error), ((RETRY_AFTER, str(round(error.retry_after_s * 1000))),))
    return ErrorStatus(code, str(error))
