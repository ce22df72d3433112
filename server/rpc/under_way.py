"""Which requests are under way, so that a server can stop without cutting one off. Knows nothing of gRPC."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import NotReady


class UnderWay:
    """Counts requests until `close`, and refuses them afterwards.

    A stream that waits for its client's next request does not count: it must not hold up the end.
    """

    def __init__(self) -> None:
        self.count = 0
        self.closed = False
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A request, from its first look to its last answer. NotReady once the server is stopping."""
        if self.closed:
            raise NotReady("the server is stopping; ask another one, or come back later")
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

    async def finished(self, timeout_s: float) -> bool:
        """Wait for those under way; False if some still are when the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none.wait()
        except TimeoutError:
            return False
        return True
