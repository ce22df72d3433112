"""Failed calls, as exceptions with the server's details about the cause."""

import re
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

# gRPC's texts for servers that cannot be reached, on a machine with or without a route to them, and their meaning.
UNREACHABLE = re.compile(
    "failed to connect|Failed to connect|DNS resolution failed|errors resolving|Connection refused|Socket closed"
)
CLOSED = re.compile("failed to connect to all addresses.*Socket closed|all backends failing.*Socket closed")
UNHEALTHY = re.compile("backend unhealthy")
HANDSHAKE = re.compile(r"(?:Tls handshake failed|Custom verification check failed).*?(?=: OK$|$)")
INPUT = re.compile(r"^((?:inputs|text_pairs|images)\[)(\d+)(?=\])")


@dataclass(frozen=True)
class Cause:
    """What the server says about an error in machine-readable form; empty if it says nothing.

    `reason` is a name such as INVALID_REQUEST, `violations` are the fields of the request that are invalid, each with
    a description, and `retry_after_s` says in how many seconds the call can succeed.
    """

    reason: str = ""
    violations: tuple[tuple[str, str], ...] = ()
    retry_after_s: float | None = None


class CallFailed(Exception):
    """A call that failed. The text is the server's error message, `code` is the gRPC status code."""

    def __init__(self, code: grpc.StatusCode, text: str, cause: Cause | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.cause = cause or Cause()


class Unreachable(CallFailed):
    """No server accepts connections at the address."""


def call_failed(error: Any, *, server: str, first: int = 0) -> CallFailed:
    """The exception for gRPC's error. `first` is the number of the first input of the call among those of the user."""
    code, text = error.code(), error.details() or ""
    if code is not grpc.StatusCode.UNAVAILABLE:
        return CallFailed(code, _renumbered(text, first), _cause(error, first))
    if handshake := HANDSHAKE.search(text):
        return CallFailed(code, f"no TLS connection to {server}: {handshake[0]}")
    if UNHEALTHY.search(text):
        return CallFailed(code, f"no replica of {server} is serving")
    if CLOSED.search(text):
        return Unreachable(code, f"no server answers at {server} (it closes connections; does it require TLS?)")
    if UNREACHABLE.search(text):
        return Unreachable(code, f"no server answers at {server}")
    return CallFailed(code, text, _cause(error, first))


def _cause(error: Any, first: int) -> Cause:
    """The details of google.rpc's error model in the trailing metadata."""
    found: dict[str, Any] = {}
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # those of another call, or damaged
        status = None
    for detail in status.details if status else ():
        info, request, retry = ErrorInfo(), BadRequest(), RetryInfo()
        if detail.Unpack(info):
            found["reason"] = info.reason
        elif detail.Unpack(request):
            violations = ((each.field, each.description) for each in request.field_violations)
            found["violations"] = tuple((_renumbered(name, first), text) for name, text in violations)
        elif detail.Unpack(retry):
            found["retry_after_s"] = retry.retry_delay.ToMilliseconds() / 1000
    return Cause(**found)


def _renumbered(text: str, first: int) -> str:
    """The text with the number of the input among all inputs of the user, of which the call had a part."""
    return INPUT.sub(lambda found: f"{found[1]}{int(found[2]) + first}", text)
