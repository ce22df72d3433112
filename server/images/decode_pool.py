"""The threads that decode images for all models, with a limit on the memory that they use at the same time.

Texts are encoded in other threads, so that they do not wait for images.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.concurrency.weighted_semaphore import WeightedSemaphore
from server.host.priority import yield_to_event_loop

DECODING_BYTES = 1_600_000_000  # over all images being decoded: two of the largest, or dozens of photographs
Result = TypeVar("Result")


class DecodePool:
    """Runs work that takes a known amount of memory."""

    def __init__(self, threads: int, *, decoding_bytes: int = DECODING_BYTES) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="images", initializer=yield_to_event_loop)
        self._memory = WeightedSemaphore(decoding_bytes)

    async def run(self, work: Callable[[], Result], *, decoding_bytes: int) -> Result:
        """The result of work, which starts when `decoding_bytes` of memory are free.

        A caller that is cancelled stops waiting. Work that has started goes on, and keeps its memory until it ends.
        """
        loop = asyncio.get_running_loop()

        def done(job: Future[Result]) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: no other work waits for memory
                loop.call_soon_threadsafe(self._memory.release, decoding_bytes)

        await self._memory.acquire(decoding_bytes)
        try:
            job = self._threads.submit(work)
        except RuntimeError:  # the pool is closed
            self._memory.release(decoding_bytes)
            raise
        job.add_done_callback(done)
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """Start no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
