"""The progress of an export: a line for each step with its duration, and on a terminal a bar during the step."""

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
    """Writes to `out`, by default the standard output; `clock` returns seconds."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out or sys.stdout
        self.clock = clock
        self.label = ""

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=self.out, flush=True)

    @contextmanager
    def step(self, label: str) -> Iterator[list[str]]:
        """Print the name of a step while it runs, then its duration and the remarks that the block appended."""
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
        """Iterate over the parts of a step, with a bar on a terminal."""
        if not self.out.isatty():
            yield from items
            return
        bar = tqdm(items, desc=self.label, bar_format=BAR, leave=False, file=self.out)
        try:
            yield from bar
        finally:
            bar.close()
            print(f"\r{self.label}", end="", file=self.out, flush=True)
