"""How long work in a thread is asked to end: it looks between its steps."""

import threading

from server.errors import NotReady


class StopSignal:
    """Not asked for until `set`."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raises NotReady once it was asked for."""
        if self._event.is_set():
            raise NotReady("the server is stopping")
