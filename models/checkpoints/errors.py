"""The errors of a checkpoint: the key in the file, what was found, what was expected."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


class CheckpointError(ValueError):
    """The files of a checkpoint are broken, or their model is not supported."""


def expect(config: Json, expected: Json) -> None:
    """CheckpointError if one of the `expected` keys has another value; a missing key is as expected."""
    for key, value in expected.items():
        found = config.get(key)
        if found is not None and found != value:
            reason = "with another value the model computes something that cannot be exported"
            raise CheckpointError(f"config.json: {key} is {found!r}: expected {value!r}; {reason}")


def square(key: str, size: Any) -> Any:
    """The side of a square, which some configurations give as two numbers."""
    if not isinstance(size, Sequence) or isinstance(size, str):
        return size
    if len(set(size)) != 1:
        raise CheckpointError(f"config.json: {key} is {list(size)}: expected a square")
    return size[0]


def whole_number(key: str, value: Any) -> int:
    """A size, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json: {key} is {value!r}: expected a whole number, at least 1")
    return value
