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


def call_of(context: Context, *, priority: int = 0, timeout_us: int = 0) -> Call:
    """The call behind a context. `timeout_us` (microseconds, 0 for none) may only shorten the caller's own deadline."""
    remaining_s: float | None = context.time_remaining()
    limits_s = [limit for limit in (remaining_s, timeout_us / 1e6 or None) if limit is not None]
    deadline = time.monotonic() + min(limits_s) if limits_s else None
    return Call(deadline=deadline, priority=priority)


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
