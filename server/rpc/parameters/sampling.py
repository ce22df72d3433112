"""The options of text generation, from the typed request's fields or from an Open Inference request's parameters.

Their names are those that vLLM and OpenAI use.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protos.affinity_pb2 import GenerateRequest
from server.errors import InvalidRequest
from server.generation.request import ListLimits, Sampling
from server.rpc.parameters.values import Kind, Value

PARAMETERS: dict[str, Kind] = {
    "max_tokens": Kind.LIMIT,
    "min_tokens": Kind.INTEGER,
    "temperature": Kind.NUMBER,
    "top_k": Kind.INTEGER,
    "top_p": Kind.NUMBER,
    "min_p": Kind.NUMBER,
    "repetition_penalty": Kind.NUMBER,
    "frequency_penalty": Kind.NUMBER,
    "presence_penalty": Kind.NUMBER,
    "logit_bias": Kind.TEXT,  # a JSON object: token id → bias
    "seed": Kind.INTEGER,
    "stop": Kind.TEXT,  # one string, or a JSON list of strings
    "stop_token_ids": Kind.TEXT,  # a JSON list of token ids
    "include_stop_str_in_output": Kind.BOOLEAN,
    "ignore_eos": Kind.BOOLEAN,
}


@dataclass(frozen=True)
class GenerationOptions:
    """The sampling parameters and stop strings of a request."""

    sampling: Sampling
    stop: tuple[str, ...] = ()
    include_stop: bool = False


def from_request(request: GenerateRequest, limits: ListLimits) -> GenerationOptions:
    """The options of a typed request. Missing fields take the defaults of Sampling."""
    limits.check_stop(request.stop)
    limits.check_tokens("logit_bias", len(request.logit_bias))
    limits.check_tokens("stop_token_ids", len(request.stop_token_ids))
    optional = ("max_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
    given: dict[str, Any] = {name: getattr(request, name) for name in optional if request.HasField(name)}  # type: ignore[arg-type]
    plain = ("min_tokens", "min_p", "frequency_penalty", "presence_penalty", "ignore_eos", "logprobs")
    given |= {name: getattr(request, name) for name in plain}
    sampling = Sampling(logit_bias=request.logit_bias, stop_token_ids=request.stop_token_ids, **given)
    return GenerationOptions(sampling, tuple(request.stop), request.include_stop_str_in_output)


def from_parameters(parameters: Mapping[str, Value], limits: ListLimits) -> GenerationOptions:
    """The options of an Open Inference request, whose parameters have been checked against PARAMETERS."""
    given: dict[str, Any] = dict(parameters)
    for name in ("stop", "logit_bias", "stop_token_ids"):
        limits.check_json(name, given.get(name, ""))
    if given.get("top_k") == -1:  # in vLLM: the whole vocabulary
        given["top_k"] = 0
    if given.get("seed") == -1:  # in vLLM: a random seed
        del given["seed"]
    elif "seed" in given:
        given["seed"] %= 2**64  # negative seeds are valid, too, as in PyTorch
    stop = read_strings(given.pop("stop", ""))
    limits.check_stop(stop)
    include_stop = given.pop("include_stop_str_in_output", False)
    for name, read in (("stop_token_ids", _token_ids), ("logit_bias", _biases)):
        if name in given:
            given[name] = read(given[name])
            limits.check_tokens(name, len(given[name]))
    return GenerationOptions(Sampling(**given), stop, include_stop)


def read_strings(text: str) -> tuple[str, ...]:
    """The strings of a JSON list; any other text, such as `[`, is a single string."""
    strings = _load(text) if text.startswith("[") else None
    if isinstance(strings, list) and all(isinstance(string, str) for string in strings):
        return tuple(strings)
    return (text,) if text else ()


def _token_ids(text: str) -> tuple[int, ...]:
    ids = _json("stop_token_ids", text, list)
    if not all(type(token) is int for token in ids):
        raise InvalidRequest("stop_token_ids", repr(text), "a JSON list of token ids")
    return tuple(ids)


def _biases(text: str) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in _json("logit_bias", text, dict).items()}
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequest("logit_bias", repr(text), "a JSON object from token id to bias") from None


def _json(field: str, text: str, kind: type) -> Any:
    value = _load(text)
    if not isinstance(value, kind):
        raise InvalidRequest(field, repr(text), f"a JSON {'list' if kind is list else 'object'}")
    return value


def _load(text: str) -> Any:
    """The value of a JSON text; None if it is invalid, too deep, or has a number that is too long."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
