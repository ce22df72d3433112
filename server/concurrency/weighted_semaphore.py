"""A semaphore with weights: bounds the total size of concurrent work. Waiters queue in order on the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WeightedSemaphore:
    """Bounds the sum of the sizes that are held. Work larger than the whole capacity runs alone."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold `size` of the capacity for the duration of the block."""
        await self.acquire(size)
        try:
            yield
        finally:
            self.release(size)

    async def acquire(self, size: int) -> None:
        """Take `size` of the capacity, after all earlier waiters. A waiter that is cancelled holds nothing."""
        if not self._waiters and min(size, self.capacity) <= self.free:
            self.free -= min(size, self.capacity)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((min(size, self.capacity), turn))
        self._wake_waiters()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._wake_waiters()
            else:
                self.release(size)
            raise

    def release(self, size: int) -> None:
        """Return the share that `acquire` took."""
        self.free += min(size, self.capacity)
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        """Wake the waiters that fit, in order. Skips cancelled ones."""
        while self._waiters and (self._waiters[0][1].done() or self._waiters[0][0] <= self.free):
            size, turn = self._waiters.popleft()
            if not turn.done():
                self.free -= size
                turn.set_result(None)
