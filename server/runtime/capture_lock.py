"""Who may use CUDA while a CUDA graph is captured: the thread that captures it, alone in the process.

ONNX Runtime captures in CUDA's global mode. Memory that any other thread takes meanwhile, on whatever device, or a copy
that it waits for, fails there and spoils the capture.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class CaptureLock:
    """A lock that many threads share, or one has alone. Whoever waits to be alone comes before those who would share.

    A thread that is inside may share again. It may not ask to be alone.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharing = 0  # threads
        self._wanted = 0  # captures that wait or run
        self._alone = False
        self._mine = threading.local()

    @contextmanager
    def read(self) -> Iterator[None]:
        """Use CUDA beside others, while nothing is captured."""
        if self._inside:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted)
            self._sharing += 1
        self._mine.inside = True
        try:
            yield
        finally:
            self._mine.inside = False
            with self._changed:
                self._sharing -= 1
                self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Capture."""
        assert not self._inside, "a thread that shares cannot wait until nobody does; this is a bug"
        with self._changed:
            self._wanted += 1
            self._changed.wait_for(lambda: not self._sharing and not self._alone)
            self._alone = True
        self._mine.inside = True
        try:
            yield
        finally:
            self._mine.inside = False
            with self._changed:
                self._alone = False
                self._wanted -= 1
                self._changed.notify_all()

    @property
    def _inside(self) -> bool:
        return getattr(self._mine, "inside", False)


CAPTURE_LOCK = CaptureLock()  # of this process


def beside_captures(provider: str) -> AbstractContextManager[None]:
    """Use the provider's device while nothing is captured; on a CPU at any time."""
    return CAPTURE_LOCK.read() if provider == "cuda" else nullcontext()
