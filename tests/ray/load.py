"""Callers that send requests without a pause, and keep what they got."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Lock
from typing import Any


class Load:
    """The answers and the errors of all calls so far."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.errors: list[Exception] = []
        self._lock = Lock()

    def run(self, call: Callable[[], Any], stop: Event) -> None:
        while not stop.is_set():
            try:
                answer = call()
            except Exception as error:
                with self._lock:
                    self.errors.append(error)
                stop.wait(0.1)
            else:
                with self._lock:
                    self.answers.append(answer)

    def count(self) -> int:
        with self._lock:
            return len(self.answers)


@contextmanager
def load(call: Callable[[], Any], *, callers: int) -> Iterator[Load]:
    """So many callers during the block."""
    found, stop = Load(), Event()
    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(found.run, call, stop) for _ in range(callers)]
        try:
            yield found
        finally:
            stop.set()
    for future in futures:
        future.result()
