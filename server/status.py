"""The table from errors to gRPC status codes. No other module chooses a status code."""

import logging
from dataclasses import dataclass
from urllib.parse import quote

import grpc

from server import errors
from server.admission.queue import CancelReason

RETRY_AFTER = "retry-after-ms"  # trailing metadata of RESOURCE_EXHAUSTED: how long to wait before a retry
MAX_TEXT_BYTES = 4096  # gRPC peers may refuse metadata of more than 8 KiB, and end the call with an error of their own
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
        return ErrorStatus(code, fit(str(error)), ((RETRY_AFTER, str(round(error.retry_after_s * 1000))),))
    return ErrorStatus(code, fit(str(error)))


def fit(text: str) -> str:
    """The text, cut to what fits into the metadata of a call, where it is percent-encoded as UTF-8."""
    text = text.encode(errors="backslashreplace").decode()  # names of files can have lone surrogates
    if len(quote(text)) <= MAX_TEXT_BYTES:
        return text
    kept, size = 0, len("%E2%80%A6")
    while (size := size + len(quote(text[kept]))) <= MAX_TEXT_BYTES:
        kept += 1
    return f"{text[:kept]}…"
