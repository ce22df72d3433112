"""Moves CPU work to a thread when it is large enough to hold up the event loop."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

MAX_INLINE_ITEMS = 256  # an item takes about a microsecond, a switch to a thread about a hundred
ITEMS_PER_INPUT = 16  # what an input costs in addition to its size
Result = TypeVar("Result")


async def offload(threads: Executor, work: Callable[[], Result], *, items: int) -> Result:
    """Return the result of `work`. An item costs about as much as creating one object in a message."""
    if items <= MAX_INLINE_ITEMS:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def offload_chunked(
    threads: Executor, work: Callable[[slice], list[Result]], sizes: Sequence[int], *, max_size: int
) -> list[Result]:
    """Run `work` on one chunk of the inputs after another, in a thread, and return all results in order.

    The sizes of the inputs, in units of about a microsecond, add up to at most `max_size` in a chunk. Between two
    chunks the thread serves other requests, and if the caller has been cancelled, the remaining chunks are never run.
    A few small inputs are not worth a switch to a thread.
    """
    if sum(sizes) + ITEMS_PER_INPUT * len(sizes) <= MAX_INLINE_ITEMS:
        return work(slice(0, len(sizes)))
    results: list[Result] = []
    for chunk in _chunks(sizes, max_size):
        results += await asyncio.get_running_loop().run_in_executor(threads, partial(work, chunk))
    return results


def _chunks(sizes: Sequence[int], max_size: int) -> Iterator[slice]:
    """Consecutive slices whose sizes add up to at most `max_size`, of at least one input each."""
    start = total = 0
    for number, size in enumerate(sizes):
        if total and total + size > max_size:
            yield slice(start, number)
            start, total = number, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))
