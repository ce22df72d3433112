"""What an export is doing, a line for each step, with the seconds it took; on a terminal, a bar while it lasts."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, TypeVar

from tqdm import tqdm

LABEL_WIDTH = 28
BAR = "{desc} {percentage:3.0f}% {bar:24} {n_fmt}/{total_fmt}"
Item = TypeVar("Item")


class Progress:
    """Writes to `out`, standard output unless told otherwise; `clock` gives seconds."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out or sys.stdout
        self.clock = clock
        self.label = ""

    def say(self, text: str) -> None:
        """A line by itself."""
        print(text, file=self.out, flush=True)

    @contextmanager
    def step(self, label: str) -> Iterator[list[str]]:
        """Name a step while it runs and time it; what the block appends to the list is said after the time."""
        start, remarks = self.clock(), list[str]()
        self.label = f"  {label:<{LABEL_WIDTH}}"
        print(self.label, end="", file=self.out, flush=True)
        try:
            yield remarks
        except BaseException:
            print("failed", file=self.out, flush=True)
            raise
        seconds = f"{self.clock() - start:6.1f} s"
        print("  ".join([seconds, ", ".join(remarks)]).rstrip(), file=self.out, flush=True)

    def each(self, items: Sequence[Item]) -> Iterator[Item]:
        """Pass on the parts of the step that is under way, with a bar in its line where a person is looking."""
        if not self.out.isatty():
            yield from items
            return
        bar = tqdm(items, desc=self.label, bar_format=BAR, leave=False, file=self.out)
        try:
            yield from bar
        finally:
            bar.close()
            print(f"\r{self.label}", end="", file=self.out, flush=True)
