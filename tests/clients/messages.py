"""The messages that the clients send, built without them; `test_clients.py` compares them with those of the clients."""

import base64
from collections.abc import Iterator, Sequence

import grpc
import numpy as np

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from server.rpc.open_inference.tensors import BYTES, DATATYPES
from tests.clients.cases import CASES, plain

FIELDS = {bool: "bool_param", int: "int64_param", str: "string_param"}
Values = Sequence[str | bytes] | np.ndarray


def plain_message(case: str) -> ModelInferRequest:
    """A request without any parameters but those of the case."""
    model, tensors, parameters, outputs = CASES[case]
    request = ModelInferRequest(model_name=model)
    for name, values in tensors.items():
        add_tensor(request, name, values, raw=True)
    return finished(request, parameters, outputs)


def messages_of_kserve() -> Iterator[tuple[str, ModelInferRequest]]:
    """The case and the way, and the message of KServe's SDK, which says how many raw bytes a tensor has."""
    for case, (model, tensors, parameters, outputs) in CASES.items():
        is_text = isinstance(next(iter(tensors.values()))[0], str)
        for way in ("raw", "array", "list", *(("text", "column") if is_text else ())):
            request = ModelInferRequest(model_name=model, id=case)
            raw = way not in ("list", "text")
            for name, values in tensors.items():
                size = add_tensor(request, name, values, raw=raw, column=way == "column")
                if raw:
                    request.inputs[-1].parameters["binary_data_size"].int64_param = size
                if way == "column":
                    request.inputs[-1].parameters["content_type"].string_param = "str"
            finished(request, {**parameters, "binary_data_output": True}, outputs)
            for output in request.outputs:
                output.parameters["binary_data"].bool_param = True
            yield f"{case}, {way}", request


# Way → content types of an input and of the request.
OF_TEXT = {
    "base64": ("base64", ""),
    "text": ("str", ""),
    "text of a request": ("str", "str"),
    "numpy of text": ("np", "np"),
    "data frame": ("str", "pd"),
}


def messages_of_mlserver() -> Iterator[tuple[str, ModelInferRequest]]:
    """The case and the way, and the message of MLServer's codecs, which say what the elements of a tensor are."""
    for case, (model, tensors, parameters, outputs) in CASES.items():
        first = next(iter(tensors.values()))
        of_bytes = OF_TEXT if isinstance(first[0], str) else {"base64": OF_TEXT["base64"]}
        for way, (content_type, of_request) in ({"numpy": ("np", "")} if is_array(first) else of_bytes).items():
            for raw in (False, True):
                request = ModelInferRequest(model_name=model, model_version="1", id=case)
                for name, values in tensors.items():
                    sent = encoded(values) if way == "base64" else values
                    add_tensor(request, name, sent, raw=raw, column=not is_array(values))
                    request.inputs[-1].parameters["content_type"].string_param = content_type
                    request.inputs[-1].contents.SetInParent()
                of_all = {"content_type": of_request} if of_request else {}
                yield f"{case}, {way}{', raw' * raw}", finished(request, {**parameters, **of_all}, outputs)


def is_array(values: Values) -> bool:
    return isinstance(values, np.ndarray)


def encoded(values: Values) -> list[bytes]:
    return [base64.b64encode(element) for element in elements_of(values)]


def elements_of(values: Values) -> list[bytes]:
    return [value.encode() if isinstance(value, str) else value for value in values]


def add_tensor(request: ModelInferRequest, name: str, values: Values, *, raw: bool, column: bool = False) -> int:
    """Add a tensor, of shape [n, 1] if it is a `column`. Returns the number of its raw bytes."""
    if is_array(values):
        datatype, shape, data = ("INT64" if values.dtype.kind == "i" else "FP32"), values.shape, values.ravel().tolist()
        packed = values.tobytes()
    else:
        datatype, shape, data = BYTES, (len(values), 1) if column else (len(values),), elements_of(values)
        packed = b"".join(len(element).to_bytes(4, "little") + element for element in data)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw:
        request.raw_input_contents.append(packed)
    else:
        getattr(tensor.contents, DATATYPES[datatype].contents).extend(data)
    return len(packed)


def finished(request: ModelInferRequest, parameters: dict, outputs: list[str]) -> ModelInferRequest:
    for name, value in parameters.items():
        setattr(request.parameters[name], FIELDS[type(value)], value)
    request.outputs.extend(ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs)
    return request


def outputs_for(channel: grpc.Channel, request: ModelInferRequest) -> dict[str, list]:
    """The outputs of the server as plain values."""
    method = "/inference.GRPCInferenceService/ModelInfer"
    call = channel.unary_unary(method, ModelInferRequest.SerializeToString, ModelInferResponse.FromString)
    response = call(request, timeout=60)
    arrays = zip(response.outputs, response.raw_output_contents, strict=True)
    return {output.name: values_of(output.datatype, raw) for output, raw in arrays}


def values_of(datatype: str, raw: bytes) -> list:
    if datatype != BYTES:
        return plain(np.frombuffer(raw, DATATYPES[datatype].dtype))
    values, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        values.append(raw[at + 4 : end].decode())
        at = end
    return values


def assert_same(found: dict[str, list], expected: dict[str, list]) -> None:
    """Assert that outputs are equal, and scores up to rounding."""
    assert found.keys() == expected.keys()
    for name, values in found.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert values == expected[name]
