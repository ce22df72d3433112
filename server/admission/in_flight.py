"""Counts the requests in flight, so that a model can be unloaded, or the server stop, without interrupting one."""

import asyncio

from server.errors import NotReady


class InFlight:
    """Counts requests from start to finish. After `close`, new requests are refused with the text `refusal`.

    `closing` says that `close` was called or announced.
    """

    def __init__(self, refusal: str) -> None:
        self.count = 0
        self.closing = False
        self.closed = False
        self._refusal = refusal
        self._idle = asyncio.Event()
        self._idle.set()

    def track(self) -> "InFlight":
        """Count one request for the duration of the `with` block. Raises NotReady after `close`."""
        if self.closed:
            raise NotReady(self._refusal)
        return self

    def track_late(self) -> "InFlight":
        """Count one request for the duration of the `with` block, even after `close`."""
        return self

    def __enter__(self) -> None:
        self.count += 1
        self._idle.clear()

    def __exit__(self, *error: object) -> None:
        self.count -= 1
        if not self.count:
            self._idle.set()

    def announce_close(self) -> None:
        """Report from now on that `close` will follow. Requests are still accepted."""
        self.closing = True

    def close(self) -> None:
        """Refuse new requests from now on."""
        self.closing = self.closed = True

    async def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no request is in flight. Returns False if the timeout expires first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
