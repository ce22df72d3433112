"""Every sampling parameter at the limits of vLLM's documented range and one beyond, through both protocols.

vLLM's ranges are those that its `SamplingParams` documents and checks.
"""

import json

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub
from server.rpc.open_inference.endpoints import ENDPOINTS
from server.rpc.parameters.known_options import OF_OTHERS
from server.rpc.parameters.sampling import PARAMETERS

SERVICE = "/inference.GRPCInferenceService/"
CONTEXT, VOCABULARY = 64, 400  # of tiny-gpt
LONG, ULONG = 2**63, 2**64
SMALLEST, LARGEST = 5e-324, 1.7976931348623157e308
NAN, INFINITY = float("nan"), float("inf")
FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


class Unsigned(int):
    """A number that is sent as uint64_param, as tritonclient does for some parameters."""


NOTHING = None  # a parameter without a value: null in vLLM

ACCEPTED = {
    "max_tokens": [1, CONTEXT, LONG - 1, Unsigned(1), Unsigned(ULONG - 1), NOTHING],
    "min_tokens": [0, 2, Unsigned(2), NOTHING],
    "temperature": [0.0, 0, 2.0, 2, SMALLEST, LARGEST, Unsigned(ULONG - 1), "0", "0.7", "1e-3", NOTHING],
    "top_k": [-1, 0, 1, VOCABULARY, VOCABULARY + 1, LONG - 1, Unsigned(ULONG - 1), NOTHING],
    "top_p": [SMALLEST, 0.5, 1.0, 1, "0.5", NOTHING],
    "min_p": [0.0, 0, 1.0, 1, "0.5", NOTHING],
    "repetition_penalty": [SMALLEST, LARGEST, 1, LONG - 1, "1.1", NOTHING],
    "frequency_penalty": [-2.0, -2, 2.0, 2, "-0.5", NOTHING],
    "presence_penalty": [-2.0, -2, 2.0, 2, "-0.5", NOTHING],
    "logit_bias": [
        "{}",
        '{"0": 100, "399": -100}',
        '{"0": 101, "1": -1e300}',
        '{"0": Infinity, "1": -Infinity}',
        NOTHING,
    ],
    "seed": [-LONG, -2, -1, 0, LONG - 1, Unsigned(ULONG - 1), NOTHING],
    "stop": ["", "a", "[", "null", "[]", '["a"]', json.dumps([chr(97 + n) for n in range(16)]), NOTHING],
    "stop_token_ids": ["[]", "[0, 399]", json.dumps([1] * 1024), NOTHING],
    "include_stop_str_in_output": [True, False, NOTHING],
    "ignore_eos": [True, False, NOTHING],
    "skip_special_tokens": [True, NOTHING],
    "spaces_between_special_tokens": [True, False, NOTHING],
    "detokenize": [True, NOTHING],
    "n": [1, Unsigned(1), NOTHING],
    "best_of": [1, NOTHING],
    "use_beam_search": [False, NOTHING],
    "length_penalty": [1.0, 1, NOTHING],
    "early_stopping": [False, NOTHING],
    "logprobs": [NOTHING],
    "prompt_logprobs": [NOTHING],
    "bad_words": ["", "[]", NOTHING],
    "allowed_token_ids": [NOTHING],
    "truncate_prompt_tokens": [NOTHING],
    "structured_outputs": [NOTHING],
    "response_format": [NOTHING],
    "echo": [False],
    "suffix": [""],
}
REFUSED = {
    "max_tokens": [0, -1, -LONG, 1.0, "5", "", True],
    "min_tokens": [-1, 3, 1.0, "1", True],
    "temperature": [-1, -SMALLEST, INFINITY, -INFINITY, NAN, "", "hot", "nan", "1,5", True],
    "top_k": [-2, -LONG, 1.0, "5", True],
    "top_p": [0.0, 0, -0.1, 1.0000001, 2, INFINITY, NAN, "0", "2", True],
    "min_p": [-SMALLEST, -1, 1.0000001, 2, NAN, "1.1", True],
    "repetition_penalty": [0.0, 0, -1, INFINITY, NAN, "0", True],
    "frequency_penalty": [-2.0000001, -3, 2.0000001, 3, INFINITY, NAN, "2.1", True],
    "presence_penalty": [-2.0000001, -3, 2.0000001, 3, -INFINITY, NAN, "-2.1", True],
    "logit_bias": [
        "",
        "[]",
        "null",
        "5",
        '{"400": 1}',
        '{"-1": 1}',
        '{"a": 1}',
        '{"1": null}',
        '{"1": NaN}',
        5,
        1.5,
        True,
    ],
    "seed": [1.0, "1", "", True],
    "stop": ['["a", ""]', json.dumps(["a"] * 17), 5, 1.0, True],
    "stop_token_ids": [
        "",
        "5",
        "{}",
        "[400]",
        "[-1]",
        '["1"]',
        "[1.0]",
        "[true]",
        "[null]",
        json.dumps([1] * 1025),
        5,
        True,
    ],
    "include_stop_str_in_output": [0, 1, "true", 1.0],
    "ignore_eos": [0, 1, "true", 1.0],
    "skip_special_tokens": [False],
    "detokenize": [False],
    "n": [0, 2, Unsigned(2), "2", True],
    "best_of": [0, 2],
    "use_beam_search": [True],
    "length_penalty": [0.9, 2],
    "early_stopping": [True, "never"],
    "logprobs": [-2, -1, 0, 1, 20, True],
    "prompt_logprobs": [-1, 0, 1],
    "bad_words": ["a", '["a"]'],
    "allowed_token_ids": ["[1]", "[]"],
    "truncate_prompt_tokens": [-1, 0, 10],
    "structured_outputs": ["{}"],
    "response_format": ["json"],
    "echo": [True],
    "suffix": ["a"],
}
TYPED = {
    "max_tokens": ([1, 2**32 - 1], [0]),
    "min_tokens": ([0, 2], [3, 2**32 - 1]),
    "temperature": ([0.0, 2.0, 1e-45, 3.4028234e38], [-1e-45, -1.0, INFINITY, NAN]),
    "top_k": ([0, 1, VOCABULARY + 1, 2**32 - 1], []),
    "top_p": ([1e-45, 1.0], [0.0, -0.1, 1.0000002, INFINITY, NAN]),
    "min_p": ([0.0, 1.0], [-1e-45, 1.0000002, NAN]),
    "repetition_penalty": ([1e-45, 3.4028234e38], [0.0, -1.0, INFINITY, NAN]),
    "frequency_penalty": ([-2.0, 2.0], [-2.0000005, 2.0000005, NAN]),
    "presence_penalty": ([-2.0, 2.0], [-2.0000005, 2.0000005, NAN]),
    "logit_bias": ([{0: 100.0, 399: -100.0}, {0: INFINITY, 1: -3e38}], [{400: 1.0}, {0: NAN}]),
    "seed": ([0, ULONG - 1], []),
    "stop": ([["a"] * 16], [[""], ["a"] * 17]),
    "stop_token_ids": ([[0, 399]], [[400], [1] * 1025]),
    "logprobs": ([0, 1, 20], [21, 2**32 - 1]),
}


def cases(table):
    return [pytest.param(name, value, id=f"{name}={str(value)[:20]!a}") for name in table for value in table[name]]


def request_with(**parameters):
    request = oip.ModelInferRequest(model_name="tiny-gpt", id="1")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"A list is")
    for name, value in ({"max_tokens": 2} | parameters).items():
        if value is NOTHING:
            request.parameters[name].SetInParent()
        else:
            field = "uint64_param" if isinstance(value, Unsigned) else FIELDS[type(value)]
            setattr(request.parameters[name], field, value)
    return request


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def unary(channel):
    """Parameters → the response, and the text of the error, through ModelInfer."""
    serialize, read = oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
    method = channel.unary_unary(f"{SERVICE}ModelInfer", serialize, read)

    def call(**parameters):
        answer = method.future(request_with(**parameters), timeout=60)
        if answer.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return None, answer.details()
        return answer.result(), ""

    return call


@pytest.fixture(scope="module")
def streamed(channel):
    """Parameters → the last response, and the text of the error, through ModelStreamInfer."""
    serialize, read = oip.ModelInferRequest.SerializeToString, oip.ModelStreamInferResponse.FromString
    method = channel.stream_stream(f"{SERVICE}ModelStreamInfer", serialize, read)

    def call(**parameters):
        *_, last = method(iter([request_with(**parameters)]), timeout=60)
        return last.infer_response, last.error_message

    return call


@pytest.fixture(params=["unary", "streamed"])
def infer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def generate(channel):
    def call(**fields):
        prompt = pb.Prompt(text="A list is")
        return list(AffinityStub(channel).Generate(pb.GenerateRequest(prompts=[prompt], **{"max_tokens": 2} | fields)))

    return call


def text_of(response):
    return response.raw_output_contents[0]


@pytest.mark.parametrize(("name", "value"), cases(ACCEPTED))
def test_the_whole_range_is_accepted(infer, name, value):
    response, error = infer(**{name: value})
    assert error == ""
    assert json.loads(response.parameters["completion_tokens"].string_param)[0] >= 1
    assert "ignored_parameters" not in response.parameters


@pytest.mark.parametrize(("name", "value"), cases(REFUSED))
def test_values_beyond_the_range_are_refused_by_name(infer, name, value):
    _, error = infer(**{name: value})
    field, _, rest = error.partition(": found ")
    assert name in field
    assert ", expected " in rest


@pytest.mark.parametrize(("name", "value"), cases({name: accepted for name, (accepted, _) in TYPED.items()}))
def test_the_typed_service_accepts_the_whole_range(generate, name, value):
    assert generate(**{name: value})[-1].finish_reason


@pytest.mark.parametrize(("name", "value"), cases({name: refused for name, (_, refused) in TYPED.items()}))
def test_the_typed_service_refuses_values_beyond_the_range_by_name(generate, name, value):
    with pytest.raises(grpc.RpcError) as error:
        generate(**{name: value})
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(name)


def test_every_sampling_parameter_is_tried_at_its_limits():
    assert set(PARAMETERS) <= set(ACCEPTED)
    assert set(PARAMETERS) <= set(REFUSED)
    options = {name for endpoint in ENDPOINTS.values() for name in endpoint.parameters}
    assert options - {"seed"} <= set(OF_OTHERS)  # refused for models without them; a seed changes nothing there


# ---- meanings


def test_without_a_limit_a_text_fills_the_context(unary):
    response, _ = unary(max_tokens=NOTHING, min_tokens=1000, ignore_eos=True)
    counts = [json.loads(response.parameters[name].string_param)[0] for name in ("prompt_tokens", "completion_tokens")]
    assert sum(counts) == CONTEXT


def test_a_negative_seed_is_a_seed(unary):
    texts = [text_of(unary(seed=seed, max_tokens=20)[0]) for seed in (-2, -2, Unsigned(ULONG - 2), -3)]
    assert texts[0] == texts[1] == texts[2] != texts[3]


def test_a_large_bias_counts_as_the_largest(unary, generate):
    texts = [text_of(unary(logit_bias=json.dumps({"7": bias}), max_tokens=4)[0]) for bias in (100, 101, 1e300)]
    assert len(set(texts)) == 1
    ids = [[token for each in generate(logit_bias={7: bias}) for token in each.token_ids] for bias in (100.0, 3e38)]
    assert ids == [[7, 7], [7, 7]]
    assert all(7 not in each.token_ids for each in generate(logit_bias={7: -INFINITY}, max_tokens=20))


def test_a_fraction_may_be_sent_as_text(unary):
    def text(temperature):
        return text_of(unary(temperature=temperature, seed=3, max_tokens=20)[0])

    assert text("0.7") == text(0.7) != text(1.5)
