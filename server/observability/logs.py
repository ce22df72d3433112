"""Logging to stderr, one line per event, as text or JSON. Contents of requests are never logged."""

import json
import logging
import sys
import time

TEXT = "%(asctime)s %(levelname)-7s %(message)s"


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


def configure(level: str, style: str) -> None:
    """Send the log of the server to stderr. `level` and `style` are LOG_LEVELS and LOG_FORMATS of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if style == "json" else logging.Formatter(TEXT, "%H:%M:%S"))
    root = logging.getLogger("server")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
