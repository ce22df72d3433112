"""ModelInfer messages ↔ endpoints: check and read a request against its endpoint, and write the response."""

import math
from collections.abc import Mapping

import numpy as np

from protos.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from server.admission.queue import Limits
from server.arrays import Array
from server.errors import InvalidRequest
from server.rpc.open_inference.content_types import check_output, check_request
from server.rpc.open_inference.endpoint import ANY, Endpoint, EndpointResponse, Tensor
from server.rpc.open_inference.tensors import (
    BYTES,
    add_outputs,
    check_header,
    check_no_shared_memory,
    count_output_items,
    decode_inputs,
)
from server.rpc.parameters.values import write_parameters
from server.tasks.classification import MAX_CLASSES

CLASSIFICATION = "classification"  # parameter of a requested output: number of classes to return instead of scores


def check_inputs(endpoint: Endpoint, request: ModelInferRequest, limits: Limits) -> None:
    """Check the headers of the inputs and the number of texts or images, before anything is decoded.

    The checks come first because a message can contain millions of tensors, or one with millions of dimensions.
    """
    check_request(request)
    declared = [tensor.name for tensor in endpoint.inputs]
    for given in request.inputs[: len(declared) + 1]:
        if given.name not in declared:
            raise InvalidRequest("inputs", f"a tensor named {given.name!r}", f"only {', '.join(declared)}")
        check_header(given)
        if given.datatype == BYTES:
            limits.check(inputs=math.prod(given.shape), field=given.name)
    if len(request.inputs) > len(declared):
        raise InvalidRequest("inputs", f"{len(request.inputs)} tensors", f"each of {', '.join(declared)} once")


def read_inputs(endpoint: Endpoint, request: ModelInferRequest) -> dict[str, Array]:
    """The input arrays of a request that `check_inputs` accepts, each with the declared datatype and shape."""
    inputs = decode_inputs(request)
    declared = {tensor.name: tensor for tensor in endpoint.inputs}
    for tensor in endpoint.inputs:
        if tensor.name not in inputs and not tensor.optional:
            raise InvalidRequest("inputs", f"no tensor named {tensor.name!r}", _signature(tensor))
    return {name: _checked(declared[name], datatype, array) for name, (datatype, array) in inputs.items()}


def _checked(tensor: Tensor, datatype: str, array: Array) -> Array:
    """The array in the declared shape. Triton's clients send [n] texts as [n, 1], which is accepted, too."""
    if datatype != tensor.datatype:
        raise InvalidRequest(tensor.name, datatype, tensor.datatype)
    if datatype == BYTES and array.ndim == len(tensor.shape) + 1 and array.shape[-1] == 1:
        array = array.reshape(array.shape[:-1])
    if not tensor.fits(array.shape):
        raise InvalidRequest(tensor.name, f"shape {list(array.shape)}", _signature(tensor))
    return array


def _signature(tensor: Tensor) -> str:
    sizes = ", ".join("n" if size == ANY else str(size) for size in tensor.shape)
    return f"{tensor.datatype} of shape [{sizes}]"


def requested_outputs(endpoint: Endpoint, request: ModelInferRequest) -> dict[str, int]:
    """Name → number of classes for each requested output, 0 for the array itself. All outputs if none is requested."""
    declared = {tensor.name: tensor for tensor in endpoint.outputs}
    requested: dict[str, int] = {}
    for number, output in enumerate(request.outputs):
        field = f"outputs[{number}]"
        if output.name not in declared:
            raise InvalidRequest(field, repr(output.name), f"one of {', '.join(declared)}")
        if output.name in requested:
            raise InvalidRequest(field, f"{output.name!r} for the second time", "each output once")
        requested[output.name] = 0
        check_no_shared_memory(field, output.parameters)
        check_output(field, declared[output.name].datatype, output.parameters)
        if CLASSIFICATION in output.parameters:
            requested[output.name] = _count_of_classes(endpoint, declared[output.name], field, output.parameters)
    return requested or dict.fromkeys(declared, 0)


def _count_of_classes(endpoint: Endpoint, output: Tensor, field: str, parameters: Mapping[str, InferParameter]) -> int:
    """The value of the parameter `classification` of a requested output."""
    count = parameters[CLASSIFICATION].int64_param
    if output.labels is None:
        names = [tensor.name for tensor in endpoint.outputs if tensor.labels is not None]
        expected = f"it for {', '.join(names)} only" if names else "none: no output has scores of classes"
        raise InvalidRequest(f"{field}.parameters", repr(CLASSIFICATION), expected)
    if count < 1:
        raise InvalidRequest(f"{field}.parameters[{CLASSIFICATION!r}]", str(count), "1 or more (int64)")
    return count


def write_response(
    message: ModelInferResponse, endpoint: Endpoint, requested: dict[str, int], response: EndpointResponse
) -> ModelInferResponse:
    """Add the requested outputs and the parameters of an endpoint's response to a message."""
    declared = {tensor.name: tensor for tensor in endpoint.outputs}
    arrays = {}
    for name, classes in requested.items():
        if classes:
            _check_classes(response.outputs[name], classes)
            arrays[name] = BYTES, classify(response.outputs[name], classes, declared[name].labels or ())
        else:
            arrays[name] = declared[name].datatype, response.outputs[name]
    add_outputs(message, arrays)
    write_parameters(response.parameters, message.parameters)
    return message


def count_response_items(requested: dict[str, int], response: EndpointResponse) -> int:
    """The cost of `write_response` in items: classes, and the values that `count_output_items` counts."""
    classes = sum(_count_classes(response.outputs[name], count) for name, count in requested.items())
    return classes + count_output_items(response.outputs[name] for name in requested)


def _count_classes(scores: Array, count: int) -> int:
    """The number of classes of all inputs together if each has `count` of them."""
    return scores[..., :count].size


def _check_classes(scores: Array, count: int) -> None:
    if (classes := _count_classes(scores, count)) > MAX_CLASSES:
        raise InvalidRequest(
            f"parameters[{CLASSIFICATION!r}]", f"{classes} classes", f"at most {MAX_CLASSES} in a request"
        )


def classify(scores: Array, count: int, labels: tuple[str, ...]) -> Array:
    """Scores [..., classes] → [..., count] of Triton's `score:index` or `score:index:label`, the highest first."""
    order = np.argsort(-scores.astype(np.float32), axis=-1, kind="stable")[..., :count]
    best = np.take_along_axis(scores, order, axis=-1)
    texts = np.empty(order.shape, object)
    for position, index in np.ndenumerate(order):
        label = f":{labels[index]}" if labels else ""
        texts[position] = f"{best[position]:f}:{index}{label}".encode()
    return texts
