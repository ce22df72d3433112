"""Conversion between parameters of the Open Inference Protocol and plain values, checked against the endpoint's."""

from collections.abc import Mapping, MutableMapping
from difflib import get_close_matches
from enum import Enum

from protos.open_inference_pb2 import InferParameter
from server.errors import InvalidRequest

Value = bool | int | float | str


class Kind(Enum):
    """The type of a parameter: its description in errors, and the Python types of its value."""

    BOOLEAN = ("true or false (bool_param)", (bool,))
    INTEGER = ("a whole number (int64_param)", (int,))
    NUMBER = ("a number (double_param)", (int, float))
    TEXT = ("text (string_param)", (str,))

    @property
    def expected(self) -> str:
        return str(self.value[0])

    def accepts(self, value: Value) -> bool:
        return isinstance(value, self.value[1]) and (self is Kind.BOOLEAN or not isinstance(value, bool))


EVERY_REQUEST = {
    "priority": Kind.INTEGER,  # 1 is the highest; tritonclient sends it as uint64_param
    "timeout": Kind.INTEGER,  # in microseconds
    "triton_enable_empty_final_response": Kind.BOOLEAN,  # has no effect: the server sends no empty responses
}
# Information of clients about the encoding of tensors, or about themselves; it changes nothing in the response.
INFORMATIVE = frozenset(
    ("binary_data", "binary_data_output", "binary_data_size", "content_type", "headers", "request_id", "user")
)
FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def write_parameters(values: Mapping[str, Value], parameters: MutableMapping[str, InferParameter]) -> None:
    """Add values to the parameters of a response."""
    for name, value in values.items():
        setattr(parameters[name], FIELDS[type(value)], value)


def read_parameters(parameters: Mapping[str, InferParameter], known: Mapping[str, Kind]) -> dict[str, Value]:
    """The values of a request's parameters, without informative ones.

    Raises InvalidRequest for unknown names, with the nearest known one, and for wrong types.
    """
    known = {**known, **EVERY_REQUEST}
    values: dict[str, Value] = {}
    for name, parameter in parameters.items():
        if name in INFORMATIVE:
            continue
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            expected = f"one of {', '.join(known)}{hint}"
            raise InvalidRequest(f"parameters[{name!r}]", "an unknown name", expected)
        choice = parameter.WhichOneof("parameter_choice")
        value: Value = getattr(parameter, choice) if choice else ""
        if not known[name].accepts(value):
            raise InvalidRequest(f"parameters[{name!r}]", f"{value!r} ({choice})", known[name].expected)
        values[name] = value
    return values
