"""Conversion of gRPC's context of a call to the RequestContext that the tasks use."""

import time
from contextvars import ContextVar
from typing import Any

import grpc

from server.admission.queue import Cancellation, RequestContext
from server.auth.tokens import Client

GrpcContext = grpc.aio.ServicerContext[Any, Any]

ROUNDING_SHARE = 0.01  # of the remaining time: by so much gRPC may have rounded it up
MAX_TRANSIT_S = 0.1  # from the client to the server

# Of the streaming call that this task, or the task that created it, runs.
_CANCELLATION: ContextVar[Cancellation | None] = ContextVar("_CANCELLATION", default=None)
_CLIENT: ContextVar[Client | None] = ContextVar("_CLIENT", default=None)


def start_cancellation() -> Cancellation:
    """A new cancellation, which all request contexts share that this task makes from now on.

    ResponseWriter notes in it that the client is slow. Unary calls have none: each of their contexts has its own.
    """
    cancellation = Cancellation()
    _CANCELLATION.set(cancellation)
    return cancellation


def client_of_call() -> Client | None:
    """The client whose token came with the call that the current task runs; None for a call without one."""
    return _CLIENT.get()


def set_client_of_call(client: Client | None) -> None:
    _CLIENT.set(client)


def describe_call(path: str) -> str:
    """The call that the current task runs, for the log: its path, and the name of its client if there was a token."""
    client = _CLIENT.get()
    return f"{path} (client {client.name})" if client else path


def make_request_context(context: GrpcContext, *, priority: int = 0, timeout_us: int = 0) -> RequestContext:
    """The request context of a call. `timeout_us` (microseconds, 0 for none) can only shorten the client's deadline."""
    return request_context(context.time_remaining(), time.monotonic(), priority=priority, timeout_us=timeout_us)


def request_context(remaining_s: float | None, now: float, *, priority: int = 0, timeout_us: int = 0) -> RequestContext:
    """The request context of a call whose deadline is `remaining_s` seconds from now; None: it has none.

    A client gives up at its own deadline, which is earlier than the deadline that the server sees: gRPC transmits the
    remaining time rounded up (in steps of 10 ms from one second, of 100 ms from ten seconds, and so on), and the
    message has spent time in transit. The leeway of the request context covers both.
    """
    limits_s = [limit for limit in (remaining_s, timeout_us / 1e6 or None) if limit is not None]
    return RequestContext(
        deadline=now + min(limits_s) if limits_s else None,
        leeway_s=_leeway_s(remaining_s or 0.0),
        priority=priority,
        cancellation=_CANCELLATION.get() or Cancellation(),
    )


def _leeway_s(remaining_s: float) -> float:
    return max(ROUNDING_SHARE * remaining_s, min(MAX_TRANSIT_S, remaining_s / 2))
