"""The peer's side of the protocol: it answers lines of JSON on its standard input until the input ends."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

Work = Callable[[dict[str, Any]], Any]


def answer(open_peer: Callable[[], Work]) -> None:
    """Open the peer, report that it is ready or why it cannot run, then answer each request."""
    line = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keep the output of libraries off the protocol

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=line, flush=True)

    try:
        work = open_peer()
    except ImportError as error:
        return say({"missing": reason(error)})
    except Exception as error:
        traceback.print_exc()
        return say({"unable": reason(error)})
    say({"ready": True})
    for request in sys.stdin:
        say({"answer": work(json.loads(request))})


def reason(error: BaseException) -> str:
    """One line: the first cause of an error, as libraries that import lazily wrap it."""
    while error.__cause__:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
