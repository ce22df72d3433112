"""Standard output and error that may be closed, full or broken, or that no process reads: writing never hangs."""

import fcntl
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDIN_NUMBER, STDOUT_NUMBER, STDERR_NUMBER = 0, 1, 2
PATIENCE_MS = 100  # for a reader that is slow; after that, lines are lost until it reads again


class Output:
    """Writes whole lines to a file descriptor. Threads may share it.

    Processes that write to the same pipe share a `lock`, a descriptor of any file, so that their lines stay whole.
    """

    def __init__(self, descriptor: int, lock: int | None = None, *, patience_ms: int = PATIENCE_MS) -> None:
        self.descriptor = descriptor
        self._patience_ms = patience_ms
        self._process_lock = lock
        self._lock = threading.Lock()
        self._stuck = False  # whether the last line could not be written in time
        self._broken_line = False  # whether only the beginning of a line was written

    def write(self, text: str) -> bool:
        """Write the text. Returns False if it was lost: the file is closed or full, or its reader does not read."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock, self._exclusive():
            if self._broken_line:
                data = b"\n" + data
            rest = self._send(data)
            if len(rest) < len(data):
                self._broken_line = bool(rest)
            return not rest

    def share(self, lock: int) -> None:
        """From now on, share the file with other processes through a lock."""
        self._process_lock = lock

    def _send(self, data: bytes) -> bytes:
        """Returns the bytes that could not be written. Pipes that accept bytes accept PIPE_BUF without blocking."""
        while data:
            if not self._is_writable():
                return data
            try:
                data = data[os.write(self.descriptor, data[: select.PIPE_BUF]) :]
            except BlockingIOError:  # another process has set O_NONBLOCK and was faster
                continue
            except OSError:
                return data
        return data

    def _is_writable(self) -> bool:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        self._stuck = not poll.poll(0 if self._stuck else self._patience_ms)
        return not self._stuck

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if self._process_lock is None:
            yield
            return
        fcntl.lockf(self._process_lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._process_lock, fcntl.LOCK_UN)


STDOUT, STDERR = Output(STDOUT_NUMBER), Output(STDERR_NUMBER)


def run(command: Callable[[], int]) -> int:
    """The exit code of a command line whose output may be closed, full, or read only in part, as in `… | head`.

    It is 1 if the output cannot be written, without a message if its reader has gone.
    """
    _reopen_closed()
    try:
        code = _exit_code(command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return 1
    except OSError as error:
        print(f"standard output: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        _discard_unwritten()


def _exit_code(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as end:  # of argparse, whose output has not been flushed
        return end.code if isinstance(end.code, int) else 1


def _reopen_closed() -> None:
    """Open /dev/null in place of standard files that are closed; a socket could get the number of one otherwise."""
    for number in (STDIN_NUMBER, STDOUT_NUMBER, STDERR_NUMBER):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(STDOUT_NUMBER, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(STDERR_NUMBER, "w", closefd=False)  # noqa: SIM115


def _discard_unwritten() -> None:
    """Python would write the rest at the end of the process, and print a traceback if that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
