"""The content types of MLServer's codecs: what the elements of a tensor stand for.

A client names the content type of an input in the parameter `content_type` of the input, or of the request for all
inputs without one. Sources: MLServer's documentation of content types, and the codecs of its runtime for Hugging Face.
"""

import base64
from collections.abc import Mapping

from protos.open_inference_pb2 import InferParameter, ModelInferRequest
from server.arrays import Array
from server.errors import InvalidRequest

CONTENT_TYPE = "content_type"
NUMBERS = ("np", "raw")
ELEMENTS = ("str", *NUMBERS)  # of a BYTES tensor: the elements are the texts or files themselves
BASE64 = ("base64", "pillow_image")  # of a BYTES tensor: each element is base64 of a text or file
DATA_FRAME = "pd"  # of a request: a table, whose columns are the inputs


def is_base64(tensor: ModelInferRequest.InferInputTensor, request: ModelInferRequest) -> bool:
    """Whether the elements of this input of the request have to be decoded. Raises InvalidRequest; see `check`."""
    if not (tensor.parameters or request.parameters):
        return False
    own = read_content_type(tensor.name, tensor.parameters)
    check(tensor.name, own, accepted_of(tensor.datatype))
    return tensor.datatype == "BYTES" and (own or read_content_type("parameters", request.parameters)) in BASE64


def accepted_of(datatype: str) -> tuple[str, ...]:
    """The content types that an input of this datatype can have."""
    return (*ELEMENTS, *BASE64) if datatype == "BYTES" else NUMBERS


def check_request(request: ModelInferRequest) -> None:
    """Raise InvalidRequest if all inputs of the request together stand for something else than tensors or a table."""
    check("parameters", read_content_type("parameters", request.parameters), (*ELEMENTS, DATA_FRAME, *BASE64))


def check_output(field: str, datatype: str, parameters: Mapping[str, InferParameter]) -> None:
    """Raise InvalidRequest for a requested output whose elements would have to be encoded."""
    check(field, read_content_type(field, parameters), ELEMENTS if datatype == "BYTES" else NUMBERS)


def check(field: str, content_type: str, accepted: tuple[str, ...]) -> None:
    if content_type and content_type not in accepted:
        raise InvalidRequest(f"{field}: {CONTENT_TYPE}", repr(content_type), f"one of {', '.join(accepted)}")


def read_content_type(field: str, parameters: Mapping[str, InferParameter]) -> str:
    """The content type among the parameters of a request or a tensor; empty if there is none."""
    if CONTENT_TYPE not in parameters:
        return ""
    parameter = parameters[CONTENT_TYPE]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in (None, "string_param"):
        raise InvalidRequest(f"{field}: {CONTENT_TYPE}", f"{getattr(parameter, choice)!r} ({choice})", "string_param")
    return parameter.string_param


def decode_base64(name: str, array: Array) -> Array:
    """The array with each element decoded. White space is allowed, because many encoders break lines."""
    decoded = array.copy()
    for number, element in enumerate(array.ravel()):
        try:
            decoded.flat[number] = base64.b64decode(element.translate(None, b" \t\r\n"), validate=True)
        except ValueError as error:
            raise InvalidRequest(f"{name}[{number}]", f"invalid base64 ({error})", "base64 (content_type)") from None
    return decoded
