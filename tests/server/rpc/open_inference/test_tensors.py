"""Tensors of the Open Inference Protocol, byte by byte."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from server.errors import InvalidRequest
from server.rpc.open_inference.tensors import DATATYPES, add_outputs, decode_inputs, pack


def raw_request(datatype, shape, raw, name="x"):
    request = ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    return request


def typed_request(datatype, shape, **contents):
    request = ModelInferRequest()
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=contents)
    return request


def decoded(request):
    return decode_inputs(request)["x"][1]


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name not in ("BYTES", "BF16")])
def test_raw_numbers_are_decoded_as_they_were_packed(datatype):
    array = np.arange(6).reshape(2, 3).astype(DATATYPES[datatype].dtype)
    found = decoded(raw_request(datatype, [2, 3], pack(datatype, array)))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    "datatype", [name for name, known in DATATYPES.items() if known.contents and known.dtype != object]
)
def test_typed_numbers_are_decoded(datatype):
    values = [0, 1, 1, 0]
    found = decoded(typed_request(datatype, [2, 2], **{DATATYPES[datatype].contents: values}))
    assert found.dtype == DATATYPES[datatype].dtype
    assert found.ravel().tolist() == values


def test_bfloat16_is_the_upper_half_of_a_float32():
    assert decoded(raw_request("BF16", [2], b"\x80\x3f\x00\xc0")).tolist() == [1.0, -2.0]


@pytest.mark.parametrize("array", [np.array([b"a", b"", b"\xff\x00"], object), np.arange(4, dtype=np.int64)])
def test_tensors_packed_by_tritonclient_are_decoded(array):
    tensor = triton.InferInput("x", list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    datatype = np_to_triton_dtype(array.dtype)
    assert decoded(raw_request(datatype, array.shape, tensor._get_content())).tolist() == array.tolist()
    assert pack(datatype, array) == tensor._get_content()


def test_bytes_can_be_typed():
    assert decoded(typed_request("BYTES", [2, 1], bytes_contents=[b"a", b"bc"])).tolist() == [[b"a"], [b"bc"]]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (raw_request("INT64", [2], b"\0" * 15), "x: found 15 bytes, expected 16 for INT64 of shape [2]"),
        (raw_request("INT6", [2], b""), "x: found datatype 'INT6', expected one of BOOL"),
        (raw_request("INT8", [-1], b""), "x: found shape [-1], expected"),
        (raw_request("INT8", [0], b""), "x: found shape [0], expected"),
        (raw_request("INT8", [1] * 9, b"\0"), "expected at most 8 sizes"),
        (raw_request("INT8", [2**40, 2**40], b"\0"), "x: found 1 bytes"),
        (raw_request("BYTES", [1], b"\x05\0\0\0abc"), "x: found an element that ends at byte 9 of 7"),
        (raw_request("BYTES", [1], b"\x05\0"), "x: found an element"),
        (raw_request("BYTES", [2], b"\x01\0\0\0a"), "x: found 1 elements, expected 2 for shape [2]"),
        (raw_request("BYTES", [2], bytes(400_000)), "x: found 2 elements and 399992 bytes more, expected 2 for shape"),
        (typed_request("FP16", [1], fp32_contents=[1]), "x: found FP16 without raw_input_contents"),
        (typed_request("INT64", [1], int_contents=[1]), "x: found int_contents, expected int64_contents for INT64"),
        (typed_request("INT8", [1], int_contents=[300]), "x: found a value out of range, expected values of INT8"),
        (typed_request("INT64", [3], int64_contents=[1]), "x: found 1 elements, expected 3 for shape [3]"),
        (typed_request("INT64", [1]), "x: found 0 elements, expected 1 for shape [1]"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(request_, message):
    with pytest.raises(InvalidRequest) as error:
        decode_inputs(request_)
    assert message in str(error.value)


def test_raw_and_typed_tensors_in_one_request_are_refused():
    request = raw_request("INT8", [1], b"\0")
    request.inputs[0].contents.int_contents.append(1)
    with pytest.raises(InvalidRequest, match="x: found int_contents and raw_input_contents"):
        decode_inputs(request)


def test_each_raw_tensor_needs_its_input():
    request = raw_request("INT8", [1], b"\0")
    request.raw_input_contents.append(b"\0")
    with pytest.raises(InvalidRequest, match="raw_input_contents: found 2 tensors, expected 1"):
        decode_inputs(request)


def test_many_typed_values_are_read_in_order():
    values = np.arange(200_001)
    ((_, found),) = decode_inputs(typed_request("INT64", [3, 66667], int64_contents=values.tolist())).values()
    np.testing.assert_array_equal(found, values.reshape(3, 66667))


def test_duplicate_names_are_refused():
    request = ModelInferRequest(raw_input_contents=[b"\0", b"\0"])
    request.inputs.add(name="x", datatype="INT8", shape=[1])
    request.inputs.add(name="x", datatype="INT8", shape=[1])
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]: found a second tensor named 'x'"):
        decode_inputs(request)


def test_shared_memory_is_refused():
    request = raw_request("INT8", [1], b"\0")
    request.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    with pytest.raises(InvalidRequest, match="shared memory is not supported"):
        decode_inputs(request)


def test_tritonclient_reads_our_responses():
    response = ModelInferResponse()
    text = np.array([["naïve", "x"]], object)
    add_outputs(response, {"text": ("BYTES", text), "score": ("FP32", np.ones((2, 1), np.float32))})
    result = triton.InferResult(triton.service_pb2.ModelInferResponse.FromString(response.SerializeToString()))
    assert result.as_numpy("text").tolist() == [["naïve".encode(), b"x"]]
    assert result.as_numpy("score").tolist() == [[1.0], [1.0]]
