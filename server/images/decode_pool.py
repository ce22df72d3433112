"""Threads that decode images, for all models together, and how much memory they may take at once.

Images have threads of their own: texts are prepared in others, and do not wait behind them.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.concurrency.weighted_semaphore import WeightedSemaphore

DECODING_BYTES = 1_600_000_000  # of all images that are being decoded: two of the largest, dozens of photographs
Result = TypeVar("Result")


class DecodePool:
    """Runs work whose memory is known beforehand."""

    def __init__(self, threads: int, *, decoding_bytes: int = DECODING_BYTES) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._room = WeightedSemaphore(decoding_bytes)

    async def run(self, work: Callable[[], Result], *, decoding_bytes: int) -> Result:
        """The result of work that takes so much memory, once there is room for it.

        Who is cancelled does not wait for it any more. What a thread has begun goes on, and keeps its room until then.
        """
        loop = asyncio.get_running_loop()

        def done(job: Future[Result]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._room.leave, decoding_bytes)

        await self._room.enter(decoding_bytes)
        try:
            job = self._threads.submit(work)
        except RuntimeError:  # after the end
            self._room.leave(decoding_bytes)
            raise
        job.add_done_callback(done)
        return await asyncio.wrap_future(job)

    def end(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
