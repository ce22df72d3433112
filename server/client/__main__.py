"""`python -m server.client`: send a request to a running server from the command line."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from server.client import CallFailed, Client, Unreachable
from server.client.arguments import parse, tls
from server.client.connection import is_local, read_token, token_in
from server.client.output import note
from server.client.progress import ProgressBar
from server.host import standard_files

START = "start one with: make serve  (or: python -m server)"
STANDARD_INPUT = "-"


def main(argv: Sequence[str]) -> int:
    """Run one command. Returns the exit code: 0 for success, 1 for an error (one line on stderr), 2 for wrong usage."""
    arguments = parse(argv)
    try:
        _read_texts(arguments)
        with ProgressBar(sys.stderr) as progress, _client(arguments, progress) as client:
            arguments.run(client, arguments)
    except Unreachable as error:
        return _fail(f"{error}; {START}")
    except CallFailed as error:
        return _fail(f"{error.code.name}: {error}")
    except BrokenPipeError:  # of standard output
        raise
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _client(arguments: argparse.Namespace, progress: ProgressBar) -> Client:
    token = read_token(arguments.token_file) if arguments.token_file else token_in(os.environ)
    security = tls(arguments)
    if token and security is None and not is_local(arguments.server):
        note("the token is sent without TLS: whoever reads the network can use it")
    return Client(arguments.server, timeout_s=arguments.timeout, tls=security, token=token, on_progress=progress.show)


def _read_texts(arguments: argparse.Namespace) -> None:
    """Add the lines of --file to the texts."""
    if getattr(arguments, "file", None) is None:
        return
    standard_input = arguments.file == STANDARD_INPUT
    content = sys.stdin.buffer.read() if standard_input else Path(arguments.file).read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = content[error.start : error.end]
        raise ValueError(f"--file {arguments.file}: found {found!r}, expected UTF-8") from error
    arguments.texts += [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(standard_files.run(lambda: main(sys.argv[1:])))
