"""Work of different sizes, so much of it at once: the rest waits in order, on the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WeightedSemaphore:
    """Bounds the sum of the sizes of what is being done. What is larger than the whole room is done alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def acquire(self, size: int) -> AsyncIterator[None]:
        """So much of the room, for as long as this lasts."""
        await self.enter(size)
        try:
            yield
        finally:
            self.leave(size)

    async def enter(self, size: int) -> None:
        """Take so much of the room, once those who came before have theirs. Who is cancelled meanwhile has nothing."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((min(size, self.size), turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._let_in()
            else:
                self.leave(size)
            raise

    def leave(self, size: int) -> None:
        """Give back what `enter` took."""
        self.free += min(size, self.size)
        self._let_in()

    def _let_in(self) -> None:
        """All whose turn it is. Who has gone away meanwhile is passed over."""
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            size, turn = self._waiting.popleft()
            if not turn.done():
                self.free -= size
                turn.set_result(None)
