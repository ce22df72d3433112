"""The one table from errors to gRPC's status codes. Nothing else in the server chooses a code."""

import logging
from dataclasses import dataclass

import grpc

from server import errors
from server.admission.queue import Gone

RETRY_AFTER = "retry-after-ms"  # trailing metadata of RESOURCE_EXHAUSTED: when to come back
INTERNAL_TEXT = "internal error; the server's log has the details"

STATUS: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongTask: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.BadArtifact: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ProviderUnavailable: grpc.StatusCode.FAILED_PRECONDITION,
    errors.NotEnoughMemory: grpc.StatusCode.FAILED_PRECONDITION,
}

# gRPC cancels a call both when its deadline passes and when its client goes away.
GONE: dict[Gone, grpc.StatusCode] = {
    "expired": grpc.StatusCode.DEADLINE_EXCEEDED,
    "cancelled": grpc.StatusCode.CANCELLED,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a failed call tells its caller."""

    code: grpc.StatusCode
    text: str
    trailers: tuple[tuple[str, str], ...] = ()


def code_of(error: BaseException) -> grpc.StatusCode:
    """The code of an error; INTERNAL for one that the table does not know."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return grpc.StatusCode.INTERNAL


def answer_of(error: BaseException, *, where: str) -> Answer:
    """What to tell the caller of `where` (the method). An unknown error is logged, and not told."""
    code = code_of(error)
    if code is grpc.StatusCode.INTERNAL:
        log.error("%s failed", where, exc_info=error)
        return Answer(code, INTERNAL_TEXT)
    if isinstance(error, errors.Overloaded):
        return Answer(code, str(error), ((RETRY_AFTER, str(round(error.retry_after_s * 1000))),))
    return Answer(code, str(error))
