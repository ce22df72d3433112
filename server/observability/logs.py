"""One line per event on stderr, for a person or for a machine. No line holds what a request contained."""

import json
import logging
import sys
import time

TEXT = "%(asctime)s %(levelname)-7s %(message)s"


class Json(logging.Formatter):
    """One JSON object per line."""

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
    """Send the server's log to stderr. `level` and `style` as the settings have them (server/config/settings.py)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Json() if style == "json" else logging.Formatter(TEXT, "%H:%M:%S"))
    root = logging.getLogger("server")
    root.handlers = [handler]
    root.setLevel(level.upper())
    root.propagate = False
