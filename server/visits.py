"""Who is inside a model that is about to go: those who came before it closed may finish."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import NotReady


class Visits:
    """Counts the requests to one version of a model, from their very beginning: also while a text becomes tokens."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._inside = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Be inside. NotReady once it is closed."""
        if self._closed:
            raise NotReady(f"{self.name} is being unloaded")
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def close(self) -> None:
        """Let in nobody any more, and wait until everybody has left."""
        self._closed = True
        await self._empty.wait()
