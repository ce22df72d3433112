"""One ModelInfer request on its way through the server: read it, run the endpoint, and write the responses."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from server.concurrency.offload import offload
from server.observability.prometheus import TokenTimer
from server.repository.model import Model
from server.rpc.calls.context import GrpcContext, make_request_context
from server.rpc.open_inference.endpoint import Endpoint, EndpointRequest
from server.rpc.open_inference.infer import (
    check_inputs,
    count_response_items,
    read_inputs,
    requested_outputs,
    write_response,
)
from server.rpc.open_inference.tensors import count_input_items
from server.rpc.parameters.values import ignored_parameters, read_parameters

IGNORED = "ignored_parameters"  # parameter of a response: the names of those of the request, as a JSON list
FINAL = "triton_final_response"  # parameter of each response on a stream: whether it is the last one of its request


@dataclass(frozen=True)
class InferCall:
    """A request, the model and the endpoint that it names, and the caller's context."""

    message: ModelInferRequest
    model: Model
    endpoint: Endpoint
    context: GrpcContext
    token_timer: TokenTimer
    release: Callable[[], None]  # ends the use of the model

    async def infer(self) -> ModelInferResponse:
        """The single response to a unary call."""
        request, outputs = await self._read()
        response = await self.endpoint.infer(request)
        write = partial(write_response, self._new_response(), self.endpoint, outputs, response)
        return await offload(self.model.threads, write, items=count_response_items(outputs, response))

    async def stream(self) -> AsyncGenerator[ModelInferResponse, None]:
        """The responses to a request on a stream. Each says whether it is the last one."""
        if self.endpoint.stream is None:
            message = await self.infer()
            self.release()  # a slow reader must not delay the unloading of a model
            yield _marked(message, last=True)
            return
        request, outputs = await self._read()
        async with aclosing(self.endpoint.stream(request)) as responses:
            async for response in responses:
                message = write_response(self._new_response(), self.endpoint, outputs, response)
                yield _marked(message, last=response.last)

    async def _read(self) -> tuple[EndpointRequest, dict[str, int]]:
        """The endpoint's request, and the requested outputs."""
        values: dict[str, Any] = read_parameters(self.message.parameters, self.endpoint.parameters)
        request_context = make_request_context(
            self.context, priority=values.get("priority", 0), timeout_us=values.get("timeout", 0)
        )
        parameters = {name: value for name, value in values.items() if name in self.endpoint.parameters}
        check_inputs(self.endpoint, self.message, self.model.limits)
        read = partial(read_inputs, self.endpoint, self.message)
        inputs = await offload(self.model.threads, read, items=count_input_items(self.message))
        request = EndpointRequest(self.model, inputs, parameters, request_context, self.token_timer, self.release)
        return request, requested_outputs(self.endpoint, self.message)

    def _new_response(self) -> ModelInferResponse:
        response = ModelInferResponse(
            model_name=self.message.model_name, model_version=self.model.version, id=self.message.id
        )
        if self._ignored:
            response.parameters[IGNORED].string_param = json.dumps(self._ignored)
        return response

    @cached_property
    def _ignored(self) -> list[str]:
        return ignored_parameters(self.message.parameters, self.endpoint.parameters)


def _marked(message: ModelInferResponse, *, last: bool) -> ModelInferResponse:
    message.parameters[FINAL].bool_param = last
    return message
