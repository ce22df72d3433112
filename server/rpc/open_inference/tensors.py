"""Conversion between tensors of the Open Inference Protocol and numpy arrays. Knows the wire format, not the models.

A request carries its tensors as raw bytes (`raw_input_contents`, in the order of the inputs) or typed (`contents`),
never both. A tensor that does not fit its shape and datatype raises an InvalidRequest that names it. Responses are raw.
"""

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protos.open_inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from server.arrays import Array
from server.errors import InvalidRequest
from server.rpc.open_inference.content_types import accepted_of, check, decode_base64, is_base64, read_content_type

BYTES, BF16 = "BYTES", "BF16"
MAX_DIMENSIONS = 8
SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")  # Triton's extension
CHUNK_SIZE = 1 << 16  # typed values that are converted at once: one or two milliseconds


@dataclass(frozen=True)
class Datatype:
    """The representation of one datatype of the protocol."""

    dtype: np.dtype[np.generic]  # of the array; little-endian, like the wire format
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
    BF16: Datatype(np.dtype("<f4")),  # numpy has no bfloat16; its bits are the upper half of a float32
    "FP32": Datatype(np.dtype("<f4"), "fp32_contents"),
    "FP64": Datatype(np.dtype("<f8"), "fp64_contents"),
    BYTES: Datatype(np.dtype(object), "bytes_contents"),
}


def decode_inputs(request: ModelInferRequest) -> dict[str, tuple[str, Array]]:
    """Name → (datatype, array) for each input of the request. Elements of BYTES arrays are `bytes`."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest("raw_input_contents", f"{len(raw)} tensors", f"{len(request.inputs)}, one for each input")
    arrays: dict[str, tuple[str, Array]] = {}
    for number, tensor in enumerate(request.inputs):
        if tensor.name in arrays:
            raise InvalidRequest(f"inputs[{number}]", f"a second tensor named {tensor.name!r}", "each name once")
        check_header(tensor)
        typed = [field.name for field, _ in tensor.contents.ListFields()]  # those that have values
        if raw and typed:
            raise InvalidRequest(
                tensor.name, f"{typed[0]} and raw_input_contents", "one of the two for all tensors of a request"
            )
        array = _from_raw(tensor, raw[number]) if raw else _from_typed(tensor, typed)
        if is_base64(tensor, request):
            array = decode_base64(tensor.name, array)
        arrays[tensor.name] = tensor.datatype, array
    return arrays


def count_input_items(request: ModelInferRequest) -> int:
    """The cost of `decode_inputs` in items: typed values and BYTES elements, and kilobytes of base64."""
    typed = sum(len(values) for tensor in request.inputs for _, values in tensor.contents.ListFields())
    elements = sum(math.prod(tensor.shape) for tensor in request.inputs if tensor.datatype == BYTES)
    encoded = any(is_base64(tensor, request) for tensor in request.inputs)
    return typed + elements + (request.ByteSize() // 1024 if encoded else 0)


def count_output_items(outputs: Iterable[Array]) -> int:
    """The cost of `add_outputs` in items: BYTES elements, and kilobytes of numbers, which are copied at once."""
    return sum(array.size if array.dtype == object else array.nbytes // 1024 for array in outputs)


def check_header(tensor: ModelInferRequest.InferInputTensor) -> None:
    """Raise InvalidRequest for a datatype, shape or parameter that no tensor can have."""
    if tensor.datatype not in DATATYPES:
        raise InvalidRequest(tensor.name, f"datatype {tensor.datatype!r}", f"one of {', '.join(DATATYPES)}")
    expected = f"at most {MAX_DIMENSIONS} sizes of 1 or more"
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise InvalidRequest(tensor.name, f"{len(tensor.shape)} dimensions", expected)
    if any(size < 1 for size in tensor.shape):
        raise InvalidRequest(tensor.name, f"shape {list(tensor.shape)}", expected)
    if tensor.parameters:
        check_no_shared_memory(tensor.name, tensor.parameters)
        check(tensor.name, read_content_type(tensor.name, tensor.parameters), accepted_of(tensor.datatype))


def check_no_shared_memory(field: str, parameters: Mapping[str, InferParameter]) -> None:
    """Raise InvalidRequest if the data of a tensor is to be elsewhere than in the message."""
    for name in SHARED_MEMORY:
        if name in parameters:
            raise InvalidRequest(f"{field}.parameters", repr(name), "no such parameter: shared memory is not supported")


def _from_raw(tensor: ModelInferRequest.InferInputTensor, raw: bytes) -> Array:
    """Convert raw bytes to an array of the tensor's shape. It is a view of the bytes if possible."""
    if tensor.datatype == BYTES:
        return _objects(unpack_bytes(tensor, raw)).reshape(tuple(tensor.shape))
    datatype = DATATYPES[tensor.datatype].dtype
    width = 2 if tensor.datatype == BF16 else datatype.itemsize
    expected = math.prod(tensor.shape) * width
    if len(raw) != expected:
        raise InvalidRequest(
            tensor.name, f"{len(raw)} bytes", f"{expected} for {tensor.datatype} of shape {list(tensor.shape)}"
        )
    if tensor.datatype == BF16:
        upper = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return upper.view("<f4").reshape(tensor.shape)
    return np.frombuffer(raw, datatype).reshape(tensor.shape)


def _from_typed(tensor: ModelInferRequest.InferInputTensor, filled: Sequence[str]) -> Array:
    """Convert typed contents to an array of the tensor's shape. `filled` are the fields that have values."""
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
    expected = math.prod(tensor.shape)
    if count != expected:
        raise InvalidRequest(tensor.name, f"{count} elements", f"{expected} for shape {list(tensor.shape)}")


def _numbers(values: Sequence[float], dtype: np.dtype[np.generic]) -> Array:
    """Convert in chunks, because numpy holds the interpreter lock while it reads one."""
    numbers = np.empty(len(values), dtype)
    for begin in range(0, len(values), CHUNK_SIZE):
        chunk = values[begin : begin + CHUNK_SIZE]
        numbers[begin : begin + len(chunk)] = np.fromiter(chunk, dtype, len(chunk))
    return numbers


def _objects(values: Sequence[bytes]) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def unpack_bytes(tensor: ModelInferRequest.InferInputTensor, raw: bytes) -> list[bytes]:
    """The elements of a BYTES tensor. Each is a 4-byte little-endian length and as many bytes."""
    elements: list[bytes] = []
    start, expected = 0, math.prod(tensor.shape)
    while start < len(raw) and len(elements) < expected:
        end = start + 4
        if end <= len(raw):
            end += struct.unpack_from("<I", raw, start)[0]
        if end > len(raw) or start + 4 > len(raw):
            found = f"an element that ends at byte {end} of {len(raw)}"
            raise InvalidRequest(tensor.name, found, "elements of a 4-byte length and as many bytes")
        elements.append(raw[start + 4 : end])
        start = end
    if len(elements) < expected or start < len(raw):
        found = f"{len(elements)} elements" + f" and {len(raw) - start} bytes more" * (start < len(raw))
        raise InvalidRequest(tensor.name, found, f"{expected} for shape {list(tensor.shape)}")
    return elements


def decode_texts(name: str, array: Array) -> list[str]:
    """The texts of a BYTES tensor, which must be UTF-8."""
    texts = []
    elements: list[bytes] = array.ravel().tolist()
    for number, element in enumerate(elements):
        try:
            texts.append(element.decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name}[{number}]", f"byte {error.start} that is not UTF-8", "UTF-8") from None
    return texts


def pack(datatype: str, array: Array) -> bytes:
    """The raw bytes of an array. Text in a BYTES array is encoded as UTF-8."""
    if datatype != BYTES:
        return np.ascontiguousarray(array, DATATYPES[datatype].dtype).tobytes()
    elements = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def add_outputs(response: ModelInferResponse, outputs: Mapping[str, tuple[str, Array]]) -> None:
    """Append name → (datatype, array) to a response, as raw contents."""
    for name, (datatype, array) in outputs.items():
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(pack(datatype, array))
