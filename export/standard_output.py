"""Runs a command whose output may be closed, full, or read only in part, as in `python -m export --list | head`.

server/host/standard_files.py is the counterpart for the server, which must never wait for a reader.
"""

import os
import sys
from collections.abc import Callable

FAILED = 1


def run(command: Callable[[], int]) -> int:
    """The exit status of the command; 1 if its output cannot be written, without a message if its reader has gone."""
    _reopen_closed()
    try:
        status = _status(command)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        return FAILED
    except OSError as error:
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        return FAILED
    finally:
        _discard_unwritten()


def _status(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as end:  # of argparse, whose output has not been flushed
        return end.code if isinstance(end.code, int) else FAILED


def _reopen_closed() -> None:
    """Open /dev/null in place of standard files that are closed; Python has no object for them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _discard_unwritten() -> None:
    """Python would write the rest at the end of the process, and print a traceback if that fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
