"""One inference request of the Open Inference Protocol against a door: checked, and its answer built."""

import math

import numpy as np

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from server.admission.queue import Limits
from server.arrays import Array
from server.errors import InvalidRequest
from server.rpc.open_inference.endpoints import ANY, Endpoint, EndpointResponse, Tensor
from server.rpc.open_inference.tensors import BYTES, add_outputs, check_header, count_output_items, decode_inputs
from server.rpc.parameters import write_parameters
from server.tasks.classification import MAX_CLASSES

CLASSIFICATION = "classification"  # parameter of a requested output: how many classes to tell in place of the scores


def check_inputs(door: Endpoint, request: ModelInferRequest, limits: Limits) -> None:
    """Judge the headers of the inputs, and how many texts, or images, are in each.

    Nothing is read or multiplied before: a message can hold millions of tensors, or one of millions of dimensions.
    """
    declared = [tensor.name for tensor in door.inputs]
    for given in request.inputs[: len(declared) + 1]:
        if given.name not in declared:
            raise InvalidRequest("inputs", f"a tensor named {given.name!r}", f"only {', '.join(declared)}")
        check_header(given)
        if given.datatype == BYTES:
            limits.check(requests=math.prod(given.shape), field=given.name)
    if len(request.inputs) > len(declared):
        raise InvalidRequest("inputs", f"{len(request.inputs)} tensors", f"each of {', '.join(declared)} once")


def read_inputs(door: Endpoint, request: ModelInferRequest) -> dict[str, Array]:
    """The input arrays of a request that was checked, each as its door declares it."""
    found = decode_inputs(request)
    declared = {tensor.name: tensor for tensor in door.inputs}
    for tensor in door.inputs:
        if tensor.name not in found and not tensor.optional:
            raise InvalidRequest("inputs", f"no tensor named {tensor.name!r}", f"{_spelled(tensor)}")
    return {name: _fitting(declared[name], datatype, array) for name, (datatype, array) in found.items()}


def _fitting(tensor: Tensor, datatype: str, array: Array) -> Array:
    """The array, as its declaration wants it. Triton's clients send [n] texts as [n, 1]: taken as well."""
    if datatype != tensor.datatype:
        raise InvalidRequest(tensor.name, datatype, tensor.datatype)
    if datatype == BYTES and array.ndim == len(tensor.shape) + 1 and array.shape[-1] == 1:
        array = array.reshape(array.shape[:-1])
    if not tensor.fits(array.shape):
        raise InvalidRequest(tensor.name, f"shape {list(array.shape)}", _spelled(tensor))
    return array


def _spelled(tensor: Tensor) -> str:
    sizes = ", ".join("n" if size == ANY else str(size) for size in tensor.shape)
    return f"{tensor.datatype} of shape [{sizes}]"


def wanted_outputs(door: Endpoint, request: ModelInferRequest) -> dict[str, int]:
    """Which outputs to send, all if none are asked for → how many classes to tell of each, 0 for the array itself."""
    declared = {tensor.name: tensor for tensor in door.outputs}
    wanted: dict[str, int] = {}
    for number, output in enumerate(request.outputs):
        field = f"outputs[{number}]"
        if output.name not in declared:
            raise InvalidRequest(field, repr(output.name), f"one of {', '.join(declared)}")
        if output.name in wanted:
            raise InvalidRequest(field, f"{output.name!r} for the second time", "each output once")
        wanted[output.name] = 0
        for name, parameter in output.parameters.items():
            if name != CLASSIFICATION or declared[output.name].labels is None:
                raise InvalidRequest(f"{field}.parameters", repr(name), _known_parameters(door))
            if parameter.int64_param < 1:
                raise InvalidRequest(f"{field}.parameters[{name!r}]", str(parameter.int64_param), "1 or more (int64)")
            wanted[output.name] = parameter.int64_param
    return wanted or dict.fromkeys(declared, 0)


def _known_parameters(door: Endpoint) -> str:
    names = [tensor.name for tensor in door.outputs if tensor.labels is not None]
    return f"{CLASSIFICATION!r}, of {', '.join(names)}" if names else "none"


def answer(
    door: Endpoint, wanted: dict[str, int], reply: EndpointResponse, response: ModelInferResponse
) -> ModelInferResponse:
    """Put the wanted outputs into the response, and what is told beside them."""
    declared = {tensor.name: tensor for tensor in door.outputs}
    arrays = {}
    for name, classes in wanted.items():
        if classes:
            _check_classes(reply.outputs[name], classes)
            arrays[name] = BYTES, classify(reply.outputs[name], classes, declared[name].labels or ())
        else:
            arrays[name] = declared[name].datatype, reply.outputs[name]
    add_outputs(response, arrays)
    write_parameters(reply.parameters, response.parameters)
    return response


def items_of(wanted: dict[str, int], reply: EndpointResponse) -> int:
    """How many things `answer` handles one by one."""
    told = sum(_classes(reply.outputs[name], classes) for name, classes in wanted.items())
    return told + count_output_items(reply.outputs[name] for name in wanted)


def _classes(scores: Array, count: int) -> int:
    """How many classes are told of all inputs together."""
    return scores[..., :count].size


def _check_classes(scores: Array, count: int) -> None:
    if (told := _classes(scores, count)) > MAX_CLASSES:
        raise InvalidRequest(
            f"parameters[{CLASSIFICATION!r}]", f"{told} classes", f"at most {MAX_CLASSES} in a request"
        )


def classify(scores: Array, count: int, labels: tuple[str, ...]) -> Array:
    """[…, classes] scores → […, count] of Triton's `score:index` or `score:index:label`, the highest first."""
    order = np.argsort(-scores.astype(np.float32), axis=-1, kind="stable")[..., :count]
    best = np.take_along_axis(scores, order, axis=-1)
    texts = np.empty(order.shape, object)
    for at, index in np.ndenumerate(order):
        label = f":{labels[index]}" if labels else ""
        texts[at] = f"{best[at]:f}:{index}{label}".encode()
    return texts
