"""Answers on the terminal: tables for people, or JSON; remarks beside them."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def inputs(arguments: argparse.Namespace) -> list[str]:
    """The texts of a command, or its pairs of texts, to be shown."""
    if not arguments.pair:
        return list(arguments.texts)
    return [f"{text}  +  {pair}" for text, pair in zip(arguments.texts, arguments.pair, strict=True)]


def note_truncated(texts: Sequence[str], results: Sequence[Any]) -> None:
    for text, result in zip(texts, results, strict=True):
        if result.tokens.truncated:
            note(f"only the first {result.tokens.used} tokens were read of: {text[:40]}…")


def print_classes(arguments: argparse.Namespace, inputs: Sequence[str], results: Sequence[Any]) -> None:
    if arguments.json:
        return print_json(results)
    for named, result in zip(inputs, results, strict=True):
        print(named)
        print_table([(f"{each.score:.3f}", each.label) for each in result.classes])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows, their columns aligned, two spaces in."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(messages: Sequence[Message]) -> None:
    print(json.dumps([plain(message) for message in messages], ensure_ascii=False))


def plain(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def note(text: str) -> None:
    """Something beside the answer: on stderr, so that the answer can be piped on."""
    print(f"({text})", file=sys.stderr, flush=True)
