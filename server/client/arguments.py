"""The arguments of `python -m server.client`. Reads no file and no environment variable."""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server.client import DEFAULT_SERVER, Client, Tls, commands
from server.client.connection import TOKEN_VARIABLE
from server.client.sampling import add_sampling, count

Command = Callable[[Client, argparse.Namespace], None]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (seconds > 0 and math.isfinite(seconds)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of seconds above 0")
    return seconds


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the arguments. Exits with code 2 if they are invalid."""
    known = parser()
    arguments = known.parse_args(argv)
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        known.error("--tls-cert and --tls-key: found one of them, expected both or none")
    if "texts" in arguments and not (arguments.texts or arguments.file):
        known.error(f"{arguments.command}: found no texts, expected at least one, or --file")
    return arguments


def tls(arguments: argparse.Namespace) -> Tls | None:
    """How to connect with TLS; None: without it. Each of its options turns it on."""
    options = (arguments.tls_ca, arguments.tls_cert, arguments.tls_key, arguments.tls_server_name)
    return Tls(*options) if arguments.tls or any(options) else None


def parser() -> argparse.ArgumentParser:
    """The commands with their arguments. `run` is the function of the command."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--timeout", type=_seconds, default=60.0, metavar="S", help="deadline of a call (default: 60)")
    shared.add_argument("--json", action="store_true", help="print the complete response as JSON")
    _add_connection(shared, default=argparse.SUPPRESS)
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--model", default="", metavar="NAME", help="(default: the first model, by name, of the task)")
    limited = argparse.ArgumentParser(add_help=False)
    limited.add_argument("--top-k", type=count, metavar="N", help="number of results for each input")

    scored = argparse.ArgumentParser(add_help=False)
    functions = ("default", "softmax", "sigmoid", "none")
    scored.add_argument("--function-to-apply", default="", choices=functions, help="function from logits to scores")
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument("texts", nargs="*")
    texts.add_argument("--file", metavar="FILE", help="read texts from the lines of a file; -: of standard input")
    truncated = argparse.ArgumentParser(add_help=False)
    truncated.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    prompted = argparse.ArgumentParser(add_help=False)
    prompted.add_argument(
        "--prompt-name",
        metavar="NAME",
        help="prompt of an embedding model to put before each text, see `info`; '' for none (default: the model's)",
    )
    pairs = argparse.ArgumentParser(add_help=False)
    pairs.add_argument(
        "--pair", action="append", default=[], metavar="TEXT", help="second text of a pair; once for each text"
    )

    all_commands = argparse.ArgumentParser(
        allow_abbrev=False,
        prog="python -m server.client",
        description="Send a request to a running server.",
        epilog=f"The token of a server that requires one is read from {TOKEN_VARIABLE} or from --token-file.",
    )
    _add_connection(all_commands, default=None)
    added = all_commands.add_subparsers(dest="command", required=True)

    def add(name: str, run: Command, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = added.add_parser(name, help=help, description=help, parents=[shared, *parents], allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    fill = add("fill-mask", commands.fill_mask, "predict the token for each [MASK]", named, limited, truncated, texts)
    fill.add_argument("--target", action="append", default=[], metavar="WORD", help="rank only this word; repeatable")
    add_sampling(add("generate", commands.generate, "continue a text", named))
    images = add("classify-image", commands.classify_image, "classify images", named, limited, scored)
    images.add_argument("files", nargs="+")
    add("classify-text", commands.classify_text, "classify texts", named, limited, scored, truncated, pairs, texts)
    _add_vectors(add("embed", commands.embed, "compute one vector for each text", named, truncated, prompted, texts))
    add("count-tokens", commands.count_tokens, "count the tokens of texts", named, pairs, prompted, texts)
    info = add("info", commands.info, "show the task, limits and labels of a model")
    info.add_argument("model", nargs="?", default="")
    add("models", commands.models, "list the models of the server")
    health = add("health", commands.health, "check whether the server is serving")
    health.add_argument("service", nargs="?", default="")
    return all_commands


def _add_connection(parser: argparse.ArgumentParser, *, default: Any) -> None:
    """The options that stand before or after the command; `default` SUPPRESS keeps what stands before it."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--server",
        default=default or DEFAULT_SERVER,
        metavar="HOST:PORT",
        help=f"address, dns:///NAME:PORT for all replicas, or IP addresses with commas (default: {DEFAULT_SERVER})",
    )
    off = default if default is argparse.SUPPRESS else False
    group.add_argument("--tls", action="store_true", default=off, help="connect with TLS")
    for name, metavar, text in (
        ("--tls-ca", "FILE", "certificates (PEM) of the authorities to trust, instead of those that gRPC trusts"),
        ("--tls-cert", "FILE", "certificate (PEM) of this client, for servers that require one"),
        ("--tls-key", "FILE", "key (PEM) of --tls-cert"),
        ("--token-file", "FILE", f"file with the token, instead of {TOKEN_VARIABLE}"),
    ):
        group.add_argument(name, type=Path, default=default, metavar=metavar, help=text)
    group.add_argument(
        "--tls-server-name",
        default=default or "",
        metavar="NAME",
        help="name in the server's certificate, if it is not that of --server",
    )


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dimensions", type=count, metavar="N", help="return only the first N values")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale vectors to length 1, or not (default: as the model does)",
    )
