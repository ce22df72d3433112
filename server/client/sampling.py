"""The sampling parameters of `generate` on the command line."""

import argparse
from typing import Any


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 or more")
    return int(text)


SAMPLING: dict[str, tuple[Any, str]] = {  # field of GenerateRequest → type of the argument, help text
    "max_tokens": (count, "maximum number of generated tokens"),
    "min_tokens": (count, "minimum number of generated tokens"),
    "temperature": (float, "softmax temperature; 0: always take the most probable token"),
    "top_k": (count, "sample from the N most probable tokens; 0: from all tokens"),
    "top_p": (float, "sample from the most probable tokens whose probabilities add up to N"),
    "min_p": (float, "exclude tokens that are less probable than N times the most probable token"),
    "repetition_penalty": (float, "above 1: make tokens of the prompt and of the generated text less probable"),
    "frequency_penalty": (float, "make generated tokens less probable each time they occur"),
    "presence_penalty": (float, "make generated tokens less probable once they occur"),
    "seed": (count, "seed of the sampling; the same seed gives the same text"),
    "priority": (count, "priority in the queue: 1 is the highest, 5 the default"),
}


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    for name, (read, text) in SAMPLING.items():
        parser.add_argument("--" + name.replace("_", "-"), type=read, metavar="N", help=text)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")


def sampling_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The sampling parameters that are given, by the names of GenerateRequest."""
    return {name: value for name in SAMPLING if (value := getattr(arguments, name)) is not None}
