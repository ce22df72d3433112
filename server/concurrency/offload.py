"""Work that grows with a request, and how large it is: if it is large, a thread does it, and the event loop goes on."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

FEW = 256  # things that take about a microsecond each: a thread costs a hundred
Result = TypeVar("Result")


async def offload(threads: Executor, work: Callable[[], Result], *, items: int) -> Result:
    """The result of work on so many items, each of them as much as making an object of a class in a message."""
    if items <= FEW:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def offload_chunked(
    threads: Executor, work: Callable[[slice], list[Result]], sizes: Sequence[int], *, most: int
) -> list[Result]:
    """What work makes of inputs of such sizes, a thread doing some of them at a time, of no more than `most` together.

    Others have their turn in between; and for who is gone, nothing is done any more.
    """
    found: list[Result] = []
    for part in _slices(sizes, most):
        found += await asyncio.get_running_loop().run_in_executor(threads, partial(work, part))
    return found


def _slices(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """So many at a time that they are not too large together, at least one."""
    begin = total = 0
    for number, size in enumerate(sizes):
        if total and total + size > most:
            yield slice(begin, number)
            begin, total = number, 0
        total += size
    if sizes:
        yield slice(begin, len(sizes))
