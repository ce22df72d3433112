"""From gRPC's context to what the tasks know about a call."""

import time
from typing import Any

import grpc

from server.admission.queue import RequestContext

Context = grpc.aio.ServicerContext[Any, Any]

ROUNDED_UP, ON_THE_WAY_S = 0.01, 0.1


def request_context(context: Context, *, priority: int = 0, timeout_us: int = 0) -> RequestContext:
    """The call behind a context. `timeout_us` (microseconds, 0 for none) may only shorten the caller's own deadline.

    A client leaves at its own deadline. That is earlier than here: gRPC tells it rounded up, in steps of 10 ms from a
    second on, of 100 ms from ten and so on, and the request may have been on its way for longer than the news.
    """
    remaining_s: float | None = context.time_remaining()
    limits_s = [limit for limit in (remaining_s, timeout_us / 1e6 or None) if limit is not None]
    deadline = time.monotonic() + min(limits_s) if limits_s else None
    return RequestContext(deadline=deadline, leeway_s=_leeway_s(remaining_s or 0.0), priority=priority)


def _leeway_s(remaining_s: float) -> float:
    return max(ROUNDED_UP * remaining_s, min(ON_THE_WAY_S, remaining_s / 2))
