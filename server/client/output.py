"""Print responses on the terminal, as tables or as JSON. Notes go to stderr."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message


def input_labels(arguments: argparse.Namespace) -> list[str]:
    """One line for each text or pair of texts on the command line."""
    if not arguments.pair:
        return list(arguments.texts)
    return [f"{text}  +  {pair}" for text, pair in zip(arguments.texts, arguments.pair, strict=True)]


def note_truncated(texts: Sequence[str], results: Sequence[Any]) -> None:
    for text, result in zip(texts, results, strict=True):
        if result.tokens.truncated:
            note(f"truncated to {result.tokens.used} tokens: {text[:40]}…")


def print_classes(arguments: argparse.Namespace, labels: Sequence[str], results: Sequence[Any]) -> None:
    """Print the classes of each input below the label of the input."""
    if arguments.json:
        return print_json(results)
    for label, result in zip(labels, results, strict=True):
        print(label)
        print_table([(f"{found.score:.3f}", found.label) for found in result.classes])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns, indented by two spaces."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(messages: Sequence[Message]) -> None:
    print(json.dumps([to_dict(message) for message in messages], ensure_ascii=False))


def flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields with those of the messages and maps within them, under names such as `tuning.source`."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


def note(text: str) -> None:
    """Print a remark on stderr, so that stdout holds only the result."""
    print(f"({text})", file=sys.stderr, flush=True)
