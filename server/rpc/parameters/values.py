"""Conversion between parameters of the Open Inference Protocol and plain values, checked against the endpoint's.

A parameter that would change the answer is applied or refused; every other parameter is ignored.
"""

from collections.abc import Mapping, MutableMapping
from enum import Enum

from protos.open_inference_pb2 import InferParameter
from server.errors import InvalidRequest, shorten
from server.rpc.parameters.known_options import INFORMATIVE, nearest, values_without_effect

Value = bool | int | float | str


class Kind(Enum):
    """The type of a parameter: its description in errors."""

    BOOLEAN = "true or false (bool_param)"
    INTEGER = "a whole number (int64_param)"
    COUNT = "a whole number that is not negative (int64_param or uint64_param)"
    LIMIT = "a whole number (int64_param), or a parameter without a value for no limit"
    NUMBER = "a number (double_param)"  # or its text: the clients of KServe and MLServer cannot send fractions
    TEXT = "text (string_param)"

    def read(self, value: Value) -> Value:
        """The value of a parameter; ValueError if it has another type."""
        if self is Kind.NUMBER and not isinstance(value, bool):
            return float(value)
        expected = {Kind.BOOLEAN: bool, Kind.TEXT: str}.get(self, int)
        if type(value) is not expected or (self is Kind.COUNT and int(value) < 0):
            raise ValueError
        return value


EVERY_REQUEST = {
    "priority": Kind.COUNT,  # 1 is the highest; tritonclient sends it as uint64_param
    "timeout": Kind.COUNT,  # in microseconds
}
FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
MAX_PARAMETERS = 64  # to compare an unknown name with those that are known takes a fifth of a millisecond
NO_LIMIT = 2**63 - 1


def write_parameters(values: Mapping[str, Value], parameters: MutableMapping[str, InferParameter]) -> None:
    """Add values to the parameters of a response."""
    for name, value in values.items():
        setattr(parameters[name], FIELDS[type(value)], value)


def read_parameters(parameters: Mapping[str, InferParameter], known: Mapping[str, Kind]) -> dict[str, Value]:
    """The values of those parameters of a request that are known. A parameter without a value counts as not sent.

    Raises InvalidRequest for values of a wrong type, and for names that are not known but would change the answer:
    those of options elsewhere (`known_options`), unless the value has no effect, and those that resemble a known name.
    """
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRequest("parameters", f"{len(parameters)} parameters", f"at most {MAX_PARAMETERS}")
    known = {**known, **EVERY_REQUEST}
    values: dict[str, Value] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        value: Value = getattr(parameter, choice) if choice else ""
        if name in known and choice:
            try:
                values[name] = known[name].read(value)
            except ValueError:
                raise InvalidRequest(f"parameters[{name!r}]", f"{value!r} ({choice})", known[name].value) from None
        elif known.get(name) is Kind.LIMIT:
            values[name] = NO_LIMIT
        elif choice and name not in INFORMATIVE:
            _check_unknown(name, value, known)
    return values


def ignored_parameters(parameters: Mapping[str, InferParameter], known: Mapping[str, Kind]) -> list[str]:
    """The names of the parameters that `read_parameters` ignores and that no common client sends."""
    return [
        shorten(name)
        for name in parameters
        if not any(name in names for names in (known, EVERY_REQUEST, INFORMATIVE))
        and values_without_effect(name) is None
    ]


def _check_unknown(name: str, value: Value, known: Mapping[str, Kind]) -> None:
    """Raise InvalidRequest for a parameter that is not known and would change the answer."""
    similar = nearest(name, known)
    hint = f"; did you mean {similar!r}?" if similar else ""
    without_effect = values_without_effect(name)
    if without_effect is not None:
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in without_effect):
            expected = " or ".join((*map(repr, without_effect), "no such parameter"))
            raise InvalidRequest(f"parameters[{name!r}]", repr(value), f"{expected}: the option is not supported{hint}")
    elif similar:
        raise InvalidRequest(f"parameters[{shorten(name)!r}]", "an unknown name", f"one of {', '.join(known)}{hint}")
