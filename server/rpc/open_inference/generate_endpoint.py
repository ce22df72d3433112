"""The functions behind the endpoint of generate: the complete texts in one response, or a stream of new text."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict

import numpy as np

from server.errors import InvalidRequest
from server.rpc.generate import generate_deltas
from server.rpc.open_inference.endpoint import EndpointRequest, EndpointResponse
from server.rpc.open_inference.tensors import decode_texts
from server.rpc.parameters.sampling import from_parameters
from server.rpc.parameters.values import Value
from server.tasks.generate import Generate
from server.tasks.text_stream import TextDelta

TOKEN_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens")


async def generate(request: EndpointRequest) -> EndpointResponse:
    """The complete text of every prompt."""
    prompts = _prompts(request)
    deltas: list[list[TextDelta]] = [[] for _ in prompts]
    async with aclosing(_deltas(request, prompts)) as stream:
        async for number, delta in stream:
            deltas[number].append(delta)
    texts = ["".join(delta.text for delta in of_prompt) for of_prompt in deltas]
    last = [of_prompt[-1] for of_prompt in deltas]
    outputs = {
        "text_output": np.array([text.encode() for text in texts], object),
        "finish_reason": np.array([delta.finish_reason.encode() for delta in last], object),
    }
    return EndpointResponse(outputs, _final_parameters(last))


async def stream_text(request: EndpointRequest) -> AsyncGenerator[EndpointResponse, None]:
    """Yield the new text of one prompt at a time. The last response of each prompt has its finish_reason.

    All responses have outputs of the same shape, with an empty text for every other prompt. Many prompts are therefore
    cheaper as separate requests on the stream, or over the typed service.
    """
    prompts = _prompts(request)
    last: dict[int, TextDelta] = {}
    async with aclosing(_deltas(request, prompts)) as stream:
        async for number, delta in stream:
            text, reason = np.full((2, len(prompts)), b"", object)
            text[number], reason[number] = delta.text.encode(), delta.finish_reason.encode()
            if delta.finish_reason:
                last[number] = delta
            done = len(last) == len(prompts)
            parameters = _final_parameters([last[number] for number in sorted(last)]) if done else {}
            yield EndpointResponse({"text_output": text, "finish_reason": reason}, parameters, last=done)


def _final_parameters(last: Sequence[TextDelta]) -> dict[str, Value]:
    """Parameters of the last response: JSON lists with one item for each prompt."""
    usages = [asdict(delta.usage) for delta in last if delta.usage is not None]
    values = {
        "seed": [delta.seed for delta in last],  # JSON, because half of all seeds do not fit into int64_param
        "stop_reason": [delta.stop_reason for delta in last],
        **{name: [usage[name] for usage in usages] for name in TOKEN_COUNTS},
    }
    return {name: json.dumps(items) for name, items in values.items()}


def _prompts(request: EndpointRequest) -> list[str]:
    prompts = decode_texts("text_input", request.inputs["text_input"])
    if not prompts:
        raise InvalidRequest("text_input", "0 texts", "at least one")
    return prompts


def _deltas(request: EndpointRequest, prompts: Sequence[str]) -> AsyncGenerator[tuple[int, TextDelta], None]:
    task = request.model.task_as(Generate)
    return generate_deltas(
        task,
        prompts,
        from_parameters(request.parameters, task.limits),
        context=request.context,
        token_timer=request.token_timer,
        field="text_input",
        release=request.release,
    )
