"""Content types of MLServer's codecs: what is decoded, what is taken as it is, and what is refused by name."""

import base64

import grpc
import pytest

from protos import open_inference_pb2 as oip
from tests.server.rpc.affinity.test_servicer import TEXT, picture

ENCODED = {
    "plain": base64.b64encode,
    "in lines": base64.encodebytes,
    "in lines of Windows": lambda data: base64.encodebytes(data).replace(b"\n", b"\r\n"),
}


@pytest.fixture(scope="module")
def infer(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )


def request_for(model, name, elements, *, content_type="", of_request="", raw=False):
    request = oip.ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(elements), 1])
    if raw:
        request.raw_input_contents.append(b"".join(len(each).to_bytes(4, "little") + each for each in elements))
    else:
        tensor.contents.bytes_contents.extend(elements)
    if content_type:
        tensor.parameters["content_type"].string_param = content_type
    if of_request:
        request.parameters["content_type"].string_param = of_request
    return request


def refused(infer, request, message):
    with pytest.raises(grpc.RpcError) as error:
        infer(request, timeout=60)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in error.value.details()


INPUTS = {
    "tiny-bert": ("text", [TEXT.encode(), "é [MASK] 好".encode()]),
    "tiny-classifier": ("text", [b"a list", b""]),
    "tiny-embedder": ("text", [b"a list"]),
    "tiny-gpt": ("text_input", [b"A list is"]),
    "tiny-vit": ("image", [picture(), picture(form="JPEG", seed=1)]),
}


@pytest.mark.parametrize("encode", ENCODED.values(), ids=ENCODED.keys())
@pytest.mark.parametrize("model", INPUTS)
@pytest.mark.parametrize("raw", [False, True], ids=["typed", "raw"])
def test_base64_is_decoded(infer, model, encode, raw):
    name, elements = INPUTS[model]

    def outputs(elements, **content_types):
        request = request_for(model, name, elements, raw=raw, **content_types)
        if model == "tiny-gpt":
            request.parameters["seed"].int64_param = 1
        return infer(request, timeout=60).raw_output_contents

    plain, encoded = outputs(elements), [encode(element) for element in elements]
    assert outputs(encoded, content_type="base64") == plain
    assert outputs(encoded, content_type="pillow_image", of_request="str") == plain
    assert outputs(encoded, of_request="base64") == plain
    assert outputs(elements, content_type="str", of_request="base64") == plain


@pytest.mark.parametrize("content_type", ["str", "np", "raw"])
def test_elements_that_are_not_encoded_are_taken_as_they_are(infer, content_type):
    text = base64.b64encode(b"list") + b" [MASK]"
    plain = infer(request_for("tiny-bert", "text", [text]), timeout=60)
    assert infer(request_for("tiny-bert", "text", [text], content_type=content_type), timeout=60) == plain


def test_a_data_frame_is_its_columns(infer):
    plain = infer(request_for("tiny-bert", "text", [TEXT.encode()]), timeout=60)
    assert infer(request_for("tiny-bert", "text", [TEXT.encode()], of_request="pd"), timeout=60) == plain
    message = "text: content_type: found 'pd', expected one of str, np, raw, base64, pillow_image"
    refused(infer, request_for("tiny-bert", "text", [TEXT.encode()], content_type="pd"), message)


@pytest.mark.parametrize(
    "content_type", ["datetime", "json", "hg_json", "hg_jsonlist", "nplist", "BASE64", "é" * 9_000]
)
@pytest.mark.parametrize("place", ["content_type", "of_request"])
def test_other_content_types_are_refused_by_name(infer, content_type, place):
    request = request_for("tiny-bert", "text", [TEXT.encode()], **{place: content_type})
    field = "text" if place == "content_type" else "parameters"
    refused(infer, request, f"{field}: content_type: found {content_type[:99]!r}"[:100])


def test_a_content_type_of_another_type_is_refused(infer):
    request = request_for("tiny-bert", "text", [TEXT.encode()])
    request.inputs[0].parameters["content_type"].int64_param = 1
    refused(infer, request, "text: content_type: found 1 (int64_param), expected string_param")
    request.inputs[0].parameters["content_type"].Clear()
    assert infer(request, timeout=60).outputs


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (b"a list", "text[1]: found invalid base64 ("),
        (b"YQ", "text[1]: found invalid base64 ("),
        (b"YWI-_w==", "text[1]: found invalid base64 ("),
        (b"\xff\xff\xff\xff", "text[1]: found invalid base64 ("),
        (base64.b64encode(b"\xff"), "text[1]: found byte 0 that is not UTF-8"),
    ],
)
def test_invalid_base64_is_refused_with_the_number_of_its_element(infer, element, message):
    elements = [base64.b64encode(TEXT.encode()), element]
    refused(infer, request_for("tiny-bert", "text", elements, content_type="base64"), message)


def test_numbers_are_arrays_and_nothing_else(infer):
    request = oip.ModelInferRequest(model_name="tiny-bert.raw")
    tensor = request.inputs.add(name="input_ids", datatype="INT64", shape=[1, 2])
    tensor.contents.int64_contents.extend([5, 6])
    plain = infer(request, timeout=60)
    tensor.parameters["content_type"].string_param = "np"
    request.parameters["content_type"].string_param = "np"
    assert infer(request, timeout=60) == plain
    for content_type in ("str", "base64", "datetime"):
        tensor.parameters["content_type"].string_param = content_type
        refused(infer, request, f"input_ids: content_type: found {content_type!r}, expected one of np, raw")


def test_content_types_of_outputs_say_how_they_are_sent(infer):
    request = request_for("tiny-bert", "text", [TEXT.encode()])
    for name, content_type in (("token", "str"), ("score", "np")):
        request.outputs.add(name=name).parameters["content_type"].string_param = content_type
    assert [output.name for output in infer(request, timeout=60).outputs] == ["token", "score"]
    for number, content_type in ((0, "base64"), (1, "str")):
        del request.outputs[:]
        for name in ("token", "score"):
            request.outputs.add(name=name)
        request.outputs[number].parameters["content_type"].string_param = content_type
        refused(infer, request, f"outputs[{number}]: content_type: found {content_type!r}")
