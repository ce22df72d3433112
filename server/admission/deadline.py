"""Applies the deadline of a request to the code that awaits its result."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server.admission.queue import RequestContext
from server.errors import DeadlineExceeded


@asynccontextmanager
async def within_deadline(context: RequestContext, now: float) -> AsyncIterator[asyncio.Timeout]:
    """Cancel the block when the deadline of the request passes, and raise DeadlineExceeded."""
    try:
        async with asyncio.timeout(None if context.deadline is None else context.deadline - now) as timeout:
            yield timeout
    except TimeoutError:
        raise DeadlineExceeded("the deadline of the request passed before its answer was ready") from None
