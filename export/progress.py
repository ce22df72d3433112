"""What an export is doing, a line for each step, with the seconds it took."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

LABEL_WIDTH = 24


class Progress:
    """Writes to `out`, standard output unless told otherwise; `clock` gives seconds."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out or sys.stdout
        self.clock = clock

    def say(self, text: str) -> None:
        """A line by itself."""
        print(text, file=self.out, flush=True)

    @contextmanager
    def step(self, label: str) -> Iterator[list[str]]:
        """Name a step while it runs and time it; what the block appends to the list is said after the time."""
        start, remarks = self.clock(), list[str]()
        print(f"  {label:<{LABEL_WIDTH}}", end="", file=self.out, flush=True)
        try:
            yield remarks
        except BaseException:
            print("failed", file=self.out, flush=True)
            raise
        seconds = f"{self.clock() - start:6.1f} s"
        print("  ".join([seconds, ", ".join(remarks)]).rstrip(), file=self.out, flush=True)
