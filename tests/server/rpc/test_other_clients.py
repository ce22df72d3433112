"""Requests of clients of other servers: informative parameters, special values; and bytes that are not a message."""

import json
import urllib.request

import grpc
import pytest
import tritonclient.grpc as triton

from protos import open_inference_pb2 as oip
from server.errors import ModelNotFound
from server.status import MAX_TEXT_BYTES, error_status
from tests.server.rpc.affinity.test_servicer import TEXT

FILL_MASK = "/affinity.v1.Affinity/FillMask"
SERVICE = "/inference.GRPCInferenceService/"
NO_MESSAGES = {"no UTF-8": b"\x0a\x01\xe9", "cut off": b"\x0a\x7f", "a wrong type": b"\x0b\x00\x00"}


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def infer(channel, request):
    call = channel.unary_unary(
        f"{SERVICE}ModelInfer",
        request_serializer=oip.ModelInferRequest.SerializeToString,
        response_deserializer=oip.ModelInferResponse.FromString,
    )
    return call(request, timeout=60)


def request_for(model, tensor, text, **parameters):
    request = oip.ModelInferRequest(model_name=model)
    request.inputs.add(name=tensor, datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    for name, value in parameters.items():
        setattr(request.parameters[name], "int64_param" if isinstance(value, int) else "string_param", value)
    return request


def test_parameters_that_inform_are_ignored_on_requests_inputs_and_outputs(channel):
    plain = infer(channel, request_for("tiny-bert", "text", TEXT))
    request = request_for("tiny-bert", "text", TEXT, content_type="str", user="me")
    request.parameters["binary_data_output"].bool_param = True
    request.inputs[0].parameters["content_type"].string_param = "str"  # MLServer's codecs
    request.inputs[0].parameters["binary_data_size"].int64_param = 4  # KServe's client
    for output in plain.outputs:
        request.outputs.add(name=output.name).parameters["binary_data"].bool_param = False
    assert infer(channel, request) == plain


@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_parameters_that_change_the_meaning_are_refused(channel, place):
    request = request_for("tiny-bert", "text", TEXT)
    tensor = request.inputs[0] if place == "inputs" else request.outputs.add(name="token")
    tensor.parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(grpc.RpcError) as error:
        infer(channel, request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "shared_memory_region" in error.value.details()


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("max_token", "max_tokens"),
        ("maxTokens", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("max_tokens_to_sample", "max_tokens"),
        ("topk", "top_k"),
        ("k", "top_k"),
        ("temp", "temperature"),
        ("rep_penalty", "repetition_penalty"),
        ("ignore_eof", "ignore_eos"),
        ("timeout_ms", "timeout"),
        ("temperature" + "e" * 10_000_000, None),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest_known_name(channel, name, nearest):
    if nearest is None:  # so long that it is not compared
        assert infer(channel, request_for("tiny-gpt", "text_input", "a", **{name: 1})).outputs
        return
    with pytest.raises(grpc.RpcError) as error:
        infer(channel, request_for("tiny-gpt", "text_input", "a", **{name: 1}))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().endswith(f"did you mean {nearest!r}?")


INPUTS = {
    "tiny-bert": ("text", TEXT),
    "tiny-classifier": ("text", "a"),
    "tiny-embedder": ("text", "a"),
    "tiny-gpt": ("text_input", "a"),
}


@pytest.mark.parametrize("model", INPUTS)
def test_parameters_without_a_meaning_are_ignored_and_reported(channel, model):
    fixed = {"seed": 1} if model == "tiny-gpt" else {}
    plain = infer(channel, request_for(model, *INPUTS[model], **fixed))
    unforeseen = {"trace_id": "00-4bf9", "tenant": "me", "store": 1, "tags": "a,b", "x-request-id": "7", "": "", "é": 1}
    answer = infer(channel, request_for(model, *INPUTS[model], **fixed, **unforeseen, sequence_id=5, request_id="8"))
    assert set(json.loads(answer.parameters["ignored_parameters"].string_param)) == set(unforeseen)
    del answer.parameters["ignored_parameters"]
    assert answer == plain


@pytest.mark.parametrize("place", ["inputs", "outputs"])
def test_parameters_of_tensors_that_say_nothing_about_the_answer_are_ignored(channel, place):
    request = request_for("tiny-bert", "text", TEXT)
    request.outputs.add(name="token")
    plain = infer(channel, request)
    tensor = getattr(request, place)[0]
    for number in range(10_000):
        tensor.parameters[f"anything {number}"].double_param = number
    assert infer(channel, request) == plain


@pytest.mark.parametrize(
    ("model", "name", "value", "expected"),
    [
        ("tiny-gpt", "n", 2, "parameters['n']: found 2, expected 1 or no such parameter"),
        ("tiny-gpt", "numBeams", 4, "parameters['numBeams']: found 4, expected 1 or no such parameter"),
        ("tiny-gpt", "guided_regex", "a+", "parameters['guided_regex']: found 'a+', expected no such parameter"),
        ("tiny-classifier", "temperature", 2, "parameters['temperature']: found 2, expected no such parameter"),
        ("tiny-embedder", "top_k", 2, "parameters['top_k']: found 2, expected no such parameter"),
        ("tiny-bert", "normalize", 1, "parameters['normalize']: found 1, expected no such parameter"),
    ],
)
def test_an_option_of_other_models_and_servers_is_refused(channel, model, name, value, expected):
    with pytest.raises(grpc.RpcError) as error:
        infer(channel, request_for(model, *INPUTS[model], **{name: value}))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(expected)


def test_the_number_of_parameters_is_limited(channel):
    many = {f"unknown {number}": number for number in range(65)}
    with pytest.raises(grpc.RpcError, match="parameters: found 65 parameters, expected at most 64"):
        infer(channel, request_for("tiny-bert", "text", TEXT, **many))


def test_minus_one_means_all_tokens_for_top_k_and_a_random_number_for_the_seed(channel):
    def generated(**parameters):
        response = infer(channel, request_for("tiny-gpt", "text_input", "a", max_tokens=20, **parameters))
        return response.raw_output_contents[0]

    assert generated(top_k=-1, seed=3) == generated(top_k=0, seed=3)
    assert len({generated(top_k=-1, seed=-1) for _ in range(4)}) > 1
    with pytest.raises(grpc.RpcError) as error:
        generated(top_k=-2)
    assert error.value.details().startswith("top_k: found -2")


@pytest.mark.parametrize("message", NO_MESSAGES.values(), ids=NO_MESSAGES.keys())
@pytest.mark.parametrize("method", [f"{SERVICE}ModelInfer", f"{SERVICE}ModelMetadata", FILL_MASK])
def test_bytes_that_are_no_message_are_refused_and_counted(server, channel, method, message):
    name = method.rpartition("/")[2]

    def counted():
        with urllib.request.urlopen(server.url("/metrics")) as answer:
            lines = answer.read().decode().splitlines()
        wanted = (f'grpc_method="{name}"', 'grpc_code="INVALID_ARGUMENT"', "grpc_server_handled_total")
        return sum(float(line.split()[-1]) for line in lines if all(part in line for part in wanted))

    before = counted()
    with pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(method)(message, timeout=60)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith("the message of the call: found bytes that cannot be parsed")
    assert counted() == before + 1


def test_a_message_of_a_stream_that_cannot_be_parsed_ends_the_stream_with_an_error(channel):
    with pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream(f"{SERVICE}ModelStreamInfer")(iter([b"\x0a\x7f"]), timeout=60))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_long_name_does_not_make_an_error_too_long_for_its_client(server):
    with triton.InferenceServerClient(server.target) as client, pytest.raises(Exception, match="StatusCode.NOT_FOUND"):
        client.get_model_metadata("é" * 20_000)


@pytest.mark.parametrize("letter", ["a", "é", "\n", "😀", "\ud800"], ids=ascii)
def test_error_texts_fit_into_the_metadata_of_a_call(letter):
    text = error_status(ModelNotFound(letter * 50_000), path="/s/M").text
    assert text.endswith("…")
    assert MAX_TEXT_BYTES // 20 <= len(text) <= MAX_TEXT_BYTES
    assert error_status(ModelNotFound("short"), path="/s/M").text == "short"
