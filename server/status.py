"""The table from errors to gRPC status codes. No other module chooses a status code."""

import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

import grpc
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from server import errors
from server.admission.queue import CancelReason

# Trailing metadata. How long to wait before a retry is there under a name of our own, and under that of gRPC's retries.
RETRY_AFTER, PUSHBACK = "retry-after-ms", "grpc-retry-pushback-ms"
NEVER = "-1"  # as pushback: gRPC returns the error at once
DETAILS = "grpc-status-details-bin"
DOMAIN = "affinity"  # of the reasons in ErrorInfo

# gRPC peers may refuse metadata of more than 8 KiB, and end the call with an error of their own. It has the text three
# times: as it is, and, a third longer in base64, in the details as the message and as the description of the field.
MAX_TEXT_BYTES = 2000
INTERNAL_TEXT = "internal error; the server's log has the details"

STATUS: dict[type[BaseException], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.WrongTask: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.ModelControlOff: grpc.StatusCode.UNAVAILABLE,  # as in Triton
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
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
    trailers: tuple[tuple[str, str | bytes], ...]


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status code of an error; INTERNAL if the table does not have it."""
    kind = _known_class(error)
    return grpc.StatusCode.INTERNAL if kind is None else STATUS[kind]


def reason_of(error: BaseException) -> str:
    """The name of an error for programs, such as INVALID_REQUEST; INTERNAL if the table does not have it."""
    kind = _known_class(error)
    return "INTERNAL" if kind is None else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).upper()


def error_status(error: BaseException, *, path: str, left_s: float | None = None) -> ErrorStatus:
    """The status for an error in the method at `path`. Unknown errors are logged, and clients get a fixed text.

    `left_s` are the seconds until the deadline of the call; None: it has none. Clients are told not to wait longer.
    """
    code = code_of(error)
    text = INTERNAL_TEXT if code is grpc.StatusCode.INTERNAL else fit(str(error))
    if code is grpc.StatusCode.INTERNAL:
        log.error("%s failed", path, exc_info=error)
    details = _packed(code, text, [ErrorInfo(reason=reason_of(error), domain=DOMAIN), *_details(error, text)])
    return ErrorStatus(code, text, (*_retry_hints(error, left_s), (DETAILS, details)))


def _details(error: BaseException, text: str) -> Iterator[Message]:
    """The details of errors that have more than a reason."""
    if isinstance(error, errors.InvalidRequest):
        field = fit(errors.shorten(error.field))
        violation = BadRequest.FieldViolation(field=field, description=text.removeprefix(f"{field}: "))
        yield BadRequest(field_violations=[violation])
    if isinstance(error, errors.Overloaded):
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        yield retry


def _retry_hints(error: BaseException, left_s: float | None) -> Iterator[tuple[str, str]]:
    """The metadata that says when to send the call again."""
    if isinstance(error, errors.Overloaded):
        milliseconds = str(round(error.retry_after_s * 1000))
        yield RETRY_AFTER, milliseconds
        yield PUSHBACK, milliseconds if left_s is None or error.retry_after_s < left_s else NEVER
    if isinstance(error, errors.ModelControlOff):  # its code is otherwise that of errors which pass
        yield PUSHBACK, NEVER


def _known_class(error: BaseException) -> type[BaseException] | None:
    """The most specific class of an error in the table."""
    return next((kind for kind in type(error).__mro__ if kind in STATUS), None)


def _packed(code: grpc.StatusCode, text: str, details: Iterable[Message]) -> bytes:
    """The status as google.rpc.Status, as clients of gRPC's richer error model read it. They compare code and text."""
    status = Status(code=code.value[0], message=text)
    for detail in details:
        status.details.add().Pack(detail)
    return status.SerializeToString()  # type: ignore[no-any-return]


def fit(text: str) -> str:
    """The text, cut to what fits into the metadata of a call, where it is percent-encoded as UTF-8."""
    text = text.encode(errors="backslashreplace").decode()  # names of files can have lone surrogates
    if len(quote(text)) <= MAX_TEXT_BYTES:
        return text
    kept, size = 0, len("%E2%80%A6")
    while (size := size + len(quote(text[kept]))) <= MAX_TEXT_BYTES:
        kept += 1
    return f"{text[:kept]}…"
