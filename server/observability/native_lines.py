"""Turns the lines that native code writes to stderr (gRPC, ONNX Runtime, the C library, …) into JSON log lines.

File descriptor 2 becomes a pipe to a second process, which runs this module. A thread would end with the server, and
the last lines before a crash would be lost. The server writes its own log past the pipe.
"""

import logging
import os
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from server.host.standard_files import STDERR_NUMBER, STDIN_NUMBER, STDOUT_NUMBER, Output
from server.observability.logs import Json, LineHandler

LONGEST_LINE = 64 << 10  # bytes; longer lines are split
LOCK_NUMBER, ACKNOWLEDGE_NUMBER = 3, 4  # descriptors in the process
MARK = b"\x00all lines before this one have been written"
FINISH_S = 5.0  # for the last lines, at the end
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
LEVELS = {
    "V": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
}
FORMATS = {  # logger → how its lines begin; the group is the level
    "grpc": re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ \S+:\d+\] "),  # absl: E0102 03:04:05.678901 123 file.cc:45]
    "onnxruntime": re.compile(r"\d{4}-\d\d-\d\d [\d:.]+ \[([VIWEF]):onnxruntime:"),
}

log = logging.getLogger("server")


@contextmanager
def as_json(stderr: Output) -> Iterator[None]:
    """Redirect file descriptor 2 to a second process, while `stderr` keeps writing to the original target.

    The second process reads until this one has ended, because native code can write at the very end. On exit, this
    context waits for the lines that were written in it.
    """
    try:
        acknowledged = _start(stderr)
    except OSError as error:
        log.warning("lines of native code will not be JSON, because the process for them did not start: %s", error)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # the process has ended
            sys.stderr.flush()
            os.write(STDERR_NUMBER, b"\n" + MARK + b"\n")
        select.select([acknowledged], [], [], FINISH_S)


def _start(stderr: Output) -> int:
    """Start the process. Returns the descriptor that can be read when it has met MARK, or has ended."""
    original = os.dup(STDERR_NUMBER)
    lock = os.memfd_create("stderr")
    acknowledged, acknowledge = os.pipe()
    read, write = os.pipe()
    files = [(read, STDIN_NUMBER), (original, STDOUT_NUMBER), (original, STDERR_NUMBER)]
    files += [(lock, LOCK_NUMBER), (acknowledge, ACKNOWLEDGE_NUMBER)]  # last: they may replace the numbers before
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in files]
    os.posix_spawn(sys.executable, [sys.executable, "-m", __name__], os.environ, file_actions=actions, setsid=True)
    for descriptor in (read, acknowledge):
        os.close(descriptor)
    os.dup2(write, STDERR_NUMBER)
    os.close(write)
    stderr.descriptor = original
    stderr.share(lock)
    return acknowledged


def record_of(line: str) -> logging.LogRecord:
    """The log record for one line: logger and level as it states them, else `stderr` and a warning."""
    text = COLOUR.sub("", line)
    for name, pattern in FORMATS.items():
        if match := pattern.match(text):
            return logging.LogRecord(name, LEVELS[match[1]], "", 0, text, None, None)
    return logging.LogRecord("stderr", logging.WARNING, "", 0, text, None, None)


def main() -> None:
    """Read lines from stdin to the end, and write them as JSON to stderr. Signals for the server do not end it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    handler = LineHandler(Output(STDERR_NUMBER, LOCK_NUMBER), Json())
    for line in _lines():
        if line == MARK:
            os.write(ACKNOWLEDGE_NUMBER, b"\n")
        elif text := line.decode("utf-8", "replace").strip("\r\n"):
            handler.emit(record_of(text))


def _lines() -> Iterator[bytes]:
    begun = b""
    while chunk := os.read(STDIN_NUMBER, LONGEST_LINE):
        *lines, begun = (begun + chunk).split(b"\n")
        yield from lines
        if len(begun) >= LONGEST_LINE:
            yield begun
            begun = b""
    yield begun


if __name__ == "__main__":
    main()
