"""Reads a protobuf message from JSON, and refuses everything that the exporter does not write.

protobuf's own reader is lenient: it accepts names in camelCase, numbers in strings and null, and can ignore unknown
fields. A mistake in a file that was edited by hand would pass unnoticed.
"""

import json
import math
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)
SHOWN = 60  # characters of a value in an error
UINT32 = range(1 << 32)
SURROGATES = re.compile("[\ud800-\udfff]")


class JsonError(ValueError):
    """The contents are not the JSON of a message. The text names the field, if there is one."""


def is_text(value: object) -> bool:
    """Whether a value is a string that can be encoded: JSON can spell halves of surrogate pairs."""
    return isinstance(value, str) and (value.isascii() or not SURROGATES.search(value))


def is_uint32(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in UINT32


def is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)


# The types of the fields in manifest.proto.
KINDS: dict[int, tuple[str, Callable[[object], bool]]] = {
    FieldDescriptor.TYPE_STRING: ("a string", is_text),
    FieldDescriptor.TYPE_BOOL: ("true or false", lambda value: isinstance(value, bool)),
    FieldDescriptor.TYPE_UINT32: ("a whole number from 0 to 4294967295", is_uint32),
    FieldDescriptor.TYPE_DOUBLE: ("a number", is_finite),
}


def read_object(contents: bytes) -> dict[str, Any]:
    """The object in a JSON file. JsonError if it is not in UTF-8, or has a key twice, or is not an object."""
    if not contents:
        raise JsonError("found an empty file, expected a JSON object")
    encoding = json.detect_encoding(contents)
    if encoding != "utf-8":
        found = "UTF-8 with a byte order mark" if encoding == "utf-8-sig" else encoding.upper()
        raise JsonError(f"found {found}, expected UTF-8 without a byte order mark")
    try:
        text = contents.decode()
    except UnicodeDecodeError as error:
        raise JsonError(f"found byte {error.object[error.start]:#04x} at {error.start}, expected UTF-8") from None
    try:
        found = json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant)
    except JsonError:
        raise
    except RecursionError:
        raise JsonError("found too many nested values, expected the fields of a message") from None
    except ValueError as error:  # also for a number with too many digits
        raise JsonError(f"found no valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise JsonError(f"found {shown(found)}, expected an object")
    return found


def check_fields(value: dict[str, Any], message: type[Message]) -> None:
    """JsonError if an object has unknown fields, or fields of other types than the message."""
    _check_object(value, message.DESCRIPTOR, "")


def to_message(value: dict[str, Any], message: MessageT) -> MessageT:
    """Fill an empty message with the fields of a checked object."""
    try:
        return json_format.ParseDict(value, message)
    except (json_format.ParseError, ValueError) as error:
        raise JsonError(str(error)) from None


def parse(contents: bytes, message: MessageT) -> MessageT:
    """Fill an empty message with the contents of a JSON file. JsonError names the fault."""
    value = read_object(contents)
    check_fields(value, type(message))
    return to_message(value, message)


def shown(value: object) -> str:
    """A value as JSON, shortened if it is long."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise JsonError(f"{twice}: found {names.count(twice)} times in one object, expected once")
    return found


def _refuse_constant(constant: str) -> NoReturn:
    raise JsonError(f"found {constant}, expected a finite number")


def _check_object(value: object, descriptor: Any, where: str) -> None:
    """Check the fields of a message; `where` is the path of the message, "" for the whole file."""
    if not isinstance(value, dict):
        raise JsonError(f"{where}: found {shown(value)}, expected an object")
    for name, part in value.items():
        path = f"{where}.{name}" if where else name
        field = descriptor.fields_by_name.get(name)
        if field is None:
            raise JsonError(f"{path}: found an unknown field, expected {_nearest(name, descriptor)}")
        _check_field(part, field, path)


def _check_field(value: object, field: FieldDescriptor, path: str) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        if not isinstance(value, dict):
            raise JsonError(f"{path}: found {shown(value)}, expected an object")
        for key, part in value.items():
            _check_value(key, field.message_type.fields_by_name["key"], path)
            _check_value(part, field.message_type.fields_by_name["value"], f"{path}.{key}")
    elif field.is_repeated:
        if not isinstance(value, list):
            raise JsonError(f"{path}: found {shown(value)}, expected a list")
        for number, part in enumerate(value):
            _check_value(part, field, f"{path}[{number}]")
    else:
        _check_value(value, field, path)


def _check_value(value: object, field: FieldDescriptor, path: str) -> None:
    if field.message_type is not None:
        _check_object(value, field.message_type, path)
        return
    expected, is_valid = KINDS[field.type]
    if not is_valid(value):
        raise JsonError(f"{path}: found {shown(value)}, expected {expected}")


def _nearest(name: str, descriptor: Any) -> str:
    """The field that was probably meant, or all fields."""
    names = list(descriptor.fields_by_name)
    near = get_close_matches(name, names, n=1)
    return near[0] if near else f"one of {', '.join(names)}"
