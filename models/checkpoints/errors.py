"""What is wrong with a checkpoint, said in the words of the file: names, what was found, what was expected."""

from collections.abc import Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]


class CheckpointError(ValueError):
    """The files are not what they should be, or hold a model that is not written here."""


def expect(config: Json, expected: Json) -> None:
    """Refuse a configuration in which one of these stands with another value; where it is silent, it is as expected."""
    for key, value in expected.items():
        found = config.get(key)
        if found is not None and found != value:
            reason = "with another value the model computes something that cannot be exported"
            raise CheckpointError(f"config.json: {key} is {found!r}: expected {value!r}; {reason}")


def square(key: str, size: Any) -> Any:
    """One side of an image that some configurations give by both."""
    if not isinstance(size, Sequence):
        return size
    if len(set(size)) != 1:
        raise CheckpointError(f"config.json: {key} is {list(size)}: expected a square")
    return size[0]
