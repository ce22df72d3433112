"""Tensors of the Open Inference Protocol ↔ numpy. Knows the wire, not the models.

A tensor comes as raw bytes (`raw_input_contents`, in the order of the inputs) or typed (`contents`), never both in one
request. Whatever does not fit its shape and datatype is an InvalidRequest that names the tensor. Answers are raw.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protos.open_inference_pb2 import InferTensorContents, ModelInferRequest, ModelInferResponse
from server.arrays import Array
from server.errors import InvalidRequest

BYTES, BF16 = "BYTES", "BF16"
MAX_DIMENSIONS = 8
VALUES_AT_ONCE = 1 << 16  # typed values: a millisecond or two


@dataclass(frozen=True)
class Datatype:
    """How one datatype of the protocol is stored."""

    dtype: np.dtype[np.generic]  # of the array; little-endian, as on the wire
    contents: str = ""  # the field for typed contents; FP16 and BF16 have none


DATATYPES = {
    "BOOL": Datatype(np.dtype("?"), "bool_contents"),
    "INT8": Datatype(np.dtype("i1"), "int_contents"),
    "INT16": Datatype(np.dtype("<i2"), "int_contents"),
    "INT32": Datatype(np.dtype("<i4"), "int_contents"),
    "INT64": Datatype(np.dtype("<i8"), "int64_contents"),
    "UINT8": Datatype(np.dtype("u1"), "uint_contents"),
    "UINT16": Datatype(np.dtype("<u2"), "uint_contents"),
    "UINT32": Datatype(np.dtype("<u4"), "uint_contents"),
    "UINT64": Datatype(np.dtype("<u8"), "uint64_contents"),
    "FP16": Datatype(np.dtype("<f2")),
    BF16: Datatype(np.dtype("<f4")),  # numpy has no bfloat16: read as the float32 it is the upper half of
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
    "FP64": Datatype(np.dtype("<f8"), "fp64_contents"),
    BYTES: Datatype(np.dtype(object), "bytes_contents"),
}
CONTENTS = tuple(field.name for field in InferTensorContents.DESCRIPTOR.fields)


def decode_inputs(request: ModelInferRequest) -> dict[str, tuple[str, Array]]:
    """Name → (datatype, array of the stated shape) for each input of the request. Elements of BYTES are `bytes`."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest("raw_input_contents", f"{len(raw)} tensors", f"{len(request.inputs)}, one for each input")
    arrays: dict[str, tuple[str, Array]] = {}
    for number, tensor in enumerate(request.inputs):
        if tensor.name in arrays:
            raise InvalidRequest(f"inputs[{number}]", f"a second tensor named {tensor.name!r}", "each name once")
        check_header(tensor)
        typed = [field for field in CONTENTS if len(getattr(tensor.contents, field))]
        if raw and typed:
            raise InvalidRequest(
                tensor.name, f"{typed[0]} beside raw_input_contents", "one of the two for all tensors of a request"
            )
        read = _from_raw(tensor, raw[number]) if raw else _from_typed(tensor, typed)
        arrays[tensor.name] = tensor.datatype, read
    return arrays


def items_in(request: ModelInferRequest) -> int:
    """How many things reading the inputs handles one by one: typed values, and elements of BYTES."""
    typed = sum(len(getattr(tensor.contents, field)) for tensor in request.inputs for field in CONTENTS)
    return typed + sum(math.prod(tensor.shape) for tensor in request.inputs if tensor.datatype == BYTES)


def items_out(outputs: Iterable[Array]) -> int:
    """The same of what an answer holds; numbers are copied together, and count by the kilobyte."""
    return sum(array.size if array.dtype == object else array.nbytes // 1024 for array in outputs)


def check_header(tensor: ModelInferRequest.InferInputTensor) -> None:
    """InvalidRequest if no tensor can have this datatype, this shape or these parameters."""
    if tensor.datatype not in DATATYPES:
        raise InvalidRequest(tensor.name, f"datatype {tensor.datatype!r}", f"one of {', '.join(DATATYPES)}")
    expected = f"at most {MAX_DIMENSIONS} sizes of 1 or more"
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise InvalidRequest(tensor.name, f"{len(tensor.shape)} dimensions", expected)
    if any(size < 1 for size in tensor.shape):
        raise InvalidRequest(tensor.name, f"shape {list(tensor.shape)}", expected)
    for parameter in tensor.parameters:
        raise InvalidRequest(tensor.name, f"parameter {parameter!r}", "no parameters: shared memory is not supported")


def _from_raw(tensor: ModelInferRequest.InferInputTensor, raw: bytes) -> Array:
    """Raw bytes as they are on the wire → an array of the stated shape; a view of the bytes where it can be."""
    if tensor.datatype == BYTES:
        return _objects(unpack_bytes(tensor, raw)).reshape(tuple(tensor.shape))
    datatype = DATATYPES[tensor.datatype].dtype
    width = 2 if tensor.datatype == BF16 else datatype.itemsize
    wanted = math.prod(tensor.shape) * width
    if len(raw) != wanted:
        raise InvalidRequest(
            tensor.name, f"{len(raw)} bytes", f"{wanted} for {tensor.datatype} of shape {list(tensor.shape)}"
        )
    if tensor.datatype == BF16:
        upper = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return upper.view("<f4").reshape(tensor.shape)
    return np.frombuffer(raw, datatype).reshape(tensor.shape)


def _from_typed(tensor: ModelInferRequest.InferInputTensor, filled: Sequence[str]) -> Array:
    """Typed contents → an array of the stated shape."""
    datatype = DATATYPES[tensor.datatype]
    if not datatype.contents:
        raise InvalidRequest(tensor.name, f"{tensor.datatype} without raw_input_contents", "raw contents")
    if wrong := [field for field in filled if field != datatype.contents]:
        raise InvalidRequest(tensor.name, wrong[0], f"{datatype.contents} for {tensor.datatype}")
    values = getattr(tensor.contents, datatype.contents)
    _check_count(tensor, len(values))
    if tensor.datatype == BYTES:
        return _objects(list(values)).reshape(tuple(tensor.shape))
    try:
        return _numbers(values, datatype.dtype).reshape(tuple(tensor.shape))
    except OverflowError:
        raise InvalidRequest(tensor.name, "a value out of range", f"values of {tensor.datatype}") from None


def _check_count(tensor: ModelInferRequest.InferInputTensor, count: int) -> None:
    wanted = math.prod(tensor.shape)
    if count != wanted:
        raise InvalidRequest(tensor.name, f"{count} elements", f"{wanted} for shape {list(tensor.shape)}")


def _numbers(values: Sequence[float], dtype: np.dtype[np.generic]) -> Array:
    """Some at a time: nothing else of the process runs while numpy reads them."""
    numbers = np.empty(len(values), dtype)
    for begin in range(0, len(values), VALUES_AT_ONCE):
        some = values[begin : begin + VALUES_AT_ONCE]
        numbers[begin : begin + len(some)] = np.fromiter(some, dtype, len(some))
    return numbers


def _objects(values: Sequence[bytes]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def unpack_bytes(tensor: ModelInferRequest.InferInputTensor, raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor, as many as its shape says: each a 4-byte length, little-endian, and bytes."""
    elements: list[bytes] = []
    start, wanted = 0, math.prod(tensor.shape)
    while start < len(raw) and len(elements) < wanted:
        end = start + 4
        if end <= len(raw):
            end += struct.unpack_from("<I", raw, start)[0]
        if end > len(raw) or start + 4 > len(raw):
            found = f"an element that ends at byte {end} of {len(raw)}"
            raise InvalidRequest(tensor.name, found, "elements of a 4-byte length and as many bytes")
        elements.append(raw[start + 4 : end])
        start = end
    if len(elements) < wanted or start < len(raw):
        found = f"{len(elements)} elements" + f" and {len(raw) - start} bytes more" * (start < len(raw))
        raise InvalidRequest(tensor.name, found, f"{wanted} for shape {list(tensor.shape)}")
    return elements


def pack(datatype: str, array: Array) -> bytes:
    """An array as it goes on the wire. Text in a BYTES array becomes UTF-8."""
    if datatype != BYTES:
        return np.ascontiguousarray(array, DATATYPES[datatype].dtype).tobytes()
    elements = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def add_outputs(response: ModelInferResponse, outputs: Mapping[str, tuple[str, Array]]) -> None:
    """Append name → (datatype, array) to a response, as raw contents."""
    for name, (datatype, array) in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(pack(datatype, array))
