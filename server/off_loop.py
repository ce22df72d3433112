"""Work that grows with a request, and how large it is: if it is large, a thread does it, and the event loop goes on."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

FEW = 256  # things that take about a microsecond each: a thread costs a hundred
Result = TypeVar("Result")


async def off_loop(threads: Executor, work: Callable[[], Result], *, items: int) -> Result:
    """The result of work on so many items, each of them as much as making an object of a class in a message."""
    if items <= FEW:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)
