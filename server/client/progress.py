"""A progress bar for many inputs, on a terminal only."""

import importlib.util
from types import TracebackType
from typing import Any, TextIO

LINES = 10  # of progress, where tqdm is not installed


class ProgressBar:
    """Shows how many inputs are done: with tqdm if it is installed, otherwise in a few lines."""

    def __init__(self, stream: TextIO) -> None:
        """Shows nothing if the stream is not a terminal."""
        self._stream = stream
        self._visible = stream.isatty()
        self._bar: Any = None
        self._lines = 0

    def show(self, done: int, total: int) -> None:
        """Show that `done` inputs of `total` are done."""
        if not self._visible:
            return
        if importlib.util.find_spec("tqdm") is None:
            self._show_line(done, total)
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=total, file=self._stream, unit=" inputs", leave=False)
        self._bar.update(done - self._bar.n)

    def _show_line(self, done: int, total: int) -> None:
        if (lines := LINES * done // total) > self._lines:
            self._lines = lines
            print(f"({done} of {total} inputs)", file=self._stream, flush=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove the bar, so that the next line is the first of the result or the error."""
        if self._bar is not None:
            self._bar.close()
