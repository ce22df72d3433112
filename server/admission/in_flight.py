"""Which requests are under way, so that a model can go, or the server stop, without cutting one off."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import NotReady


class InFlight:
    """Counts requests, from their very beginning, until `close`; refuses them afterwards with `refusal`."""

    def __init__(self, refusal: str) -> None:
        self.count = 0
        self.closed = False
        self._refusal = refusal
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def track(self) -> Iterator[None]:
        """A request, from its first look to its last answer. NotReady once it is closed."""
        if self.closed:
            raise NotReady(self._refusal)
        self.count += 1
        self._none.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._none.set()

    def close(self) -> None:
        """Let nobody in any more."""
        self.closed = True

    async def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait for those under way; False if some still are when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none.wait()
        except TimeoutError:
            return False
        return True
