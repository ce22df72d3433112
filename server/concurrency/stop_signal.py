"""A signal to stop work in another thread, which checks the signal between its steps."""

import threading

from server.errors import NotReady


class StopSignal:
    """A flag that is set once, from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        """Raise NotReady if the signal is set."""
        if self._event.is_set():
            raise NotReady("the server is stopping")
