"""From gRPC's context to what the tasks know about a call, and several streams as one."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from server.admission import Call

Context = grpc.aio.ServicerContext[Any, Any]
Item = TypeVar("Item")

ROUNDED_UP, ON_THE_WAY_S = 0.01, 0.1


def call_of(context: Context, *, priority: int = 0, timeout_us: int = 0) -> Call:
    """The call behind a context. `timeout_us` (microseconds, 0 for none) may only shorten the caller's own deadline.

    A client leaves at its own deadline. That is earlier than here: gRPC tells it rounded up, in steps of 10 ms from a
    second on, of 100 ms from ten and so on, and the request may have been on its way for longer than the news.
    """
    remaining_s: float | None = context.time_remaining()
    limits_s = [limit for limit in (remaining_s, timeout_us / 1e6 or None) if limit is not None]
    deadline = time.monotonic() + min(limits_s) if limits_s else None
    return Call(deadline=deadline, leeway_s=_leeway_s(remaining_s or 0.0), priority=priority)


def _leeway_s(remaining_s: float) -> float:
    return max(ROUNDED_UP * remaining_s, min(ON_THE_WAY_S, remaining_s / 2))


async def interleave(streams: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """Items of all streams as they come, each with the number of its stream.

    The first error ends all of them. All of them are closed in the end, also when the reader goes away.
    """
    arrived: asyncio.Queue[tuple[int, Item] | BaseException | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(number: int, stream: AsyncGenerator[Item, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await arrived.put((number, item))
            await arrived.put(None)
        except Exception as error:
            await arrived.put(error)

    pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            item = await arrived.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
