"""Applies the deadline of a request to the code that awaits its result."""

import asyncio
from typing import Any

from server.admission.queue import RequestContext
from server.errors import DeadlineExceeded


class within_deadline:  # noqa: N801  # a function to its users
    """Cancel the `async with` block when the deadline of the request passes, and raise DeadlineExceeded."""

    def __init__(self, context: RequestContext, now: float) -> None:
        self._timeout = asyncio.timeout(None if context.deadline is None else context.deadline - now)

    async def __aenter__(self) -> asyncio.Timeout:
        return await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, traceback: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError:
            raise DeadlineExceeded("the deadline of the request passed before its answer was ready") from None
