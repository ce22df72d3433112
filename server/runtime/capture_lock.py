"""A read-write lock that prevents other threads from using CUDA while one thread captures a CUDA graph.

ONNX Runtime captures in CUDA's global mode: during a capture, an allocation or a synchronous copy in any other thread,
on any device, fails and invalidates the capture.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


class CaptureLock:
    """A read-write lock that prefers writers: many threads may read at once, or one thread may write.

    A thread that holds the lock may read again, but it must not write.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writers = 0  # threads that write or wait to write
        self._writing = False
        self._thread = threading.local()

    @contextmanager
    def read(self) -> Iterator[None]:
        """Hold the lock to use CUDA. Waits until no graph is being captured."""
        if self._held:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._writers)
            self._readers += 1
        self._thread.held = True
        try:
            yield
        finally:
            self._thread.held = False
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock to capture a graph. Waits until no other thread uses CUDA."""
        assert not self._held, "a thread that holds the lock cannot wait to write; this is a bug"
        with self._changed:
            self._writers += 1
            self._changed.wait_for(lambda: not self._readers and not self._writing)
            self._writing = True
        self._thread.held = True
        try:
            yield
        finally:
            self._thread.held = False
            with self._changed:
                self._writing = False
                self._writers -= 1
                self._changed.notify_all()

    @property
    def _held(self) -> bool:
        return getattr(self._thread, "held", False)


CAPTURE_LOCK = CaptureLock()  # one for the process


def cuda_read_lock(provider: str) -> AbstractContextManager[None]:
    """Hold the read lock on CUDA; other providers need no lock."""
    return CAPTURE_LOCK.read() if provider == "cuda" else nullcontext()
