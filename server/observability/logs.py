"""Logging to stderr, one line per event, as text or JSON. Contents of requests are never logged.

Everything that Python reports goes the same way: warnings, and exceptions that nothing caught, in any thread.
"""

import asyncio
import json
import logging
import sys
import threading
import time
from types import TracebackType

from server.host.standard_files import STDERR, Output

GRPC = "grpc._cython.cygrpc"  # the logger of the compiled part of gRPC
GRPC_QUOTE = "Invalid encoding on %s"  # of a header that is not UTF-8; it could have a token

TEXT = "%(asctime)s %(levelname)-7s %(message)s"

log = logging.getLogger("server")


class Json(logging.Formatter):
    """Formats a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class LineHandler(logging.Handler):
    """Writes each record as a line. Lost lines are counted, and reported with the next line that is written."""

    def __init__(self, output: Output, formatter: logging.Formatter) -> None:
        super().__init__()
        self._output, self.formatter = output, formatter
        self.lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n"
        except Exception:
            self.handleError(record)
            return
        if self.lost:
            text = f"{self.lost} lines before this one were lost: stderr could not be written"
            line = f"{self.format(logging.LogRecord('server', logging.WARNING, '', 0, text, None, None))}\n{line}"
        self.lost = 0 if self._output.write(line) else self.lost + 1


def configure(level: str, style: str) -> None:
    """Send all logs of this process to stderr. `level` and `style` are LOG_LEVELS and LOG_FORMATS of the settings.

    `level` is that of the server; of other libraries, only warnings and errors are logged.
    """
    formatter = Json() if style == "json" else logging.Formatter(TEXT, "%H:%M:%S")
    root = logging.getLogger()
    root.handlers = [LineHandler(STDERR, formatter)]
    log.setLevel(level.upper())
    root.setLevel(max(log.level, logging.WARNING))
    logging.captureWarnings(True)
    logging.getLogger(GRPC).addFilter(_is_worth_a_line)
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for what gRPC logs of headers, and of calls that the end of the server cancelled before they began."""
    error = record.exc_info[0] if record.exc_info else None
    return record.msg != GRPC_QUOTE and not (error and issubclass(error, asyncio.CancelledError))


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None, where: str = "the main thread"
) -> None:
    log.critical("an exception that nothing caught ended %s", where, exc_info=(kind, error, traceback))


def _log_thread(of: threading.ExceptHookArgs) -> None:
    if of.exc_value is not None:
        where = f"the thread {of.thread.name}" if of.thread else "a thread"
        _log_uncaught(of.exc_type, of.exc_value, of.exc_traceback, where)


def _log_unraisable(of: "sys.UnraisableHookArgs") -> None:
    if of.exc_value is not None:
        text = of.err_msg or "exception ignored in"
        log.error("%s %r", text, of.object, exc_info=(of.exc_type, of.exc_value, of.exc_traceback))
