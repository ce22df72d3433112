"""Generation over the Open Inference Protocol, called through tritonclient: unary and streamed."""

import json
import queue

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as client_messages

from tests.server.rpc.affinity.test_servicer import TEXT
from tests.server.rpc.open_inference.requests import infer, tensor

GREEDY = {"max_tokens": 8, "temperature": 0.0, "ignore_eos": True}


def test_a_unary_call_returns_the_complete_text(client):
    answer = infer(client, "tiny-gpt", [("text_input", ["A list is"])], parameters=GREEDY)
    assert answer.as_numpy("finish_reason").tolist() == [b"length"]
    assert answer.as_numpy("text_output")[0]


def streamed(client, *requests, **options):
    """The results and errors on one stream for requests of (model, input, values, parameters)."""
    arrived: queue.Queue = queue.Queue()
    client.start_stream(lambda result, error: arrived.put(error or result))
    try:
        for number, (model, name, values, parameters) in enumerate(requests):
            client.async_stream_infer(
                model, [tensor(name, values)], request_id=str(number), parameters=parameters, **options
            )
        left = len(requests)
        while left:
            result = arrived.get(timeout=60)
            final = (
                isinstance(result, Exception) or result.get_response().parameters["triton_final_response"].bool_param
            )
            left -= final
            yield result
    finally:
        client.stop_stream()


def test_prompts_of_one_request_run_concurrently(client):
    texts = ["A list is", "Return a", "The"]
    alone = [infer(client, "tiny-gpt", [("text_input", [text])], parameters=GREEDY) for text in texts]
    expected = [answer.as_numpy("text_output")[0] for answer in alone]
    whole = infer(client, "tiny-gpt", [("text_input", texts)], parameters=GREEDY)
    assert whole.as_numpy("text_output").tolist() == expected
    assert whole.as_numpy("finish_reason").tolist() == [b"length"] * 3
    responses = list(streamed(client, ("tiny-gpt", "text_input", texts, GREEDY)))
    assert b"".join(np.stack([response.as_numpy("text_output") for response in responses])[:, 1]) == expected[1]
    assert (
        np.stack([response.as_numpy("finish_reason") for response in responses]).sum(axis=0).tolist() == [b"length"] * 3
    )


@pytest.mark.parametrize("options", [{}, {"enable_empty_final_response": True}])
def test_a_stream_returns_the_same_text_in_parts(client, options):
    whole = infer(client, "tiny-gpt", [("text_input", ["A list is"])], parameters=GREEDY)
    responses = list(streamed(client, ("tiny-gpt", "text_input", ["A list is"], GREEDY), **options))
    assert b"".join(response.as_numpy("text_output")[0] for response in responses) == whole.as_numpy("text_output")[0]
    assert [response.as_numpy("finish_reason")[0] for response in responses] == [b""] * (len(responses) - 1) + [
        b"length"
    ]


def test_one_stream_carries_many_requests_and_their_errors(client):
    requests = [
        ("tiny-gpt", "text_input", ["A list is"], GREEDY),
        ("tiny-bert", "text", [TEXT], {}),
        ("tiny-bert", "text", ["no mask"], {}),
        ("missing", "text", ["x"], {}),
        ("tiny-bert", "text", [TEXT], {}),
    ]
    results = list(streamed(client, *requests))
    errors = sorted(str(result) for result in results if isinstance(result, Exception))
    assert len(errors) == 2
    assert "text[0]: found no [MASK]" in errors[1]
    assert "missing" in errors[0]
    ids = [result.get_response().id for result in results if not isinstance(result, Exception)]
    assert [each for each in ids if each != "0"] == ["1", "4"]
    assert "0" in ids


async def test_streams_of_the_aio_client(server):
    async with triton_aio.InferenceServerClient(server.target) as client:

        async def requests():
            yield {"model_name": "tiny-gpt", "inputs": [tensor("text_input", ["A list is"])], "parameters": GREEDY}

        responses = [result async for result, error in client.stream_infer(requests()) if error is None]
    assert responses[-1].as_numpy("finish_reason")[0] == b"length"


def json_parameters(result):
    """The parameters of a response, without those that every response of a stream has."""
    parameters = {name: value.string_param for name, value in result.get_response().parameters.items()}
    parameters.pop("triton_final_response", None)
    return {name: json.loads(value) for name, value in parameters.items()}


def test_the_last_response_has_seeds_stop_reasons_and_token_counts(client):
    texts, seed = ["A list is", "Return a list of"], 7
    asked = {"seed": seed, "max_tokens": 30, "ignore_eos": True, "stop": json.dumps(["e", "a"])}
    whole = infer(client, "tiny-gpt", [("text_input", texts)], parameters=asked)
    expected = json_parameters(whole)
    assert expected["seed"] == [7, 7]
    assert set(expected["stop_reason"]) <= {"e", "a", ""}
    counts = [infer(client, "tiny-gpt", [("text_input", [text])], parameters=asked) for text in texts]
    assert [json_parameters(answer)["completion_tokens"][0] for answer in counts] == expected["completion_tokens"]
    assert expected["prompt_tokens"][0] < expected["prompt_tokens"][1]
    *others, last = streamed(client, ("tiny-gpt", "text_input", texts, asked))
    assert all(json_parameters(other) == {} for other in others)
    assert {**json_parameters(last), "cached_tokens": 0} == {**expected, "cached_tokens": 0}


def test_the_largest_seed_is_returned_exactly(client):
    largest = 2**64 - 1
    request = client_messages.ModelInferRequest(model_name="tiny-gpt")
    request.parameters["seed"].uint64_param = largest
    request.parameters["max_tokens"].int64_param = 1
    request.inputs.add(name="text_input", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"A")
    answer = client._client_stub.ModelInfer(request)
    assert json.loads(answer.parameters["seed"].string_param) == [largest]


@pytest.mark.parametrize("stop", ["[" * 200, f"[{'1' * 200}]"], ids=["deep", "long"])
def test_a_stop_string_may_look_like_an_invalid_json_list(client, stop):
    answer = infer(client, "tiny-gpt", [("text_input", ["a"])], parameters={**GREEDY, "stop": stop})
    assert answer.as_numpy("finish_reason").tolist() == [b"length"]


def test_stops_can_be_a_list(client):
    whole = infer(client, "tiny-gpt", [("text_input", ["A list is"])], parameters={**GREEDY, "max_tokens": 30})
    text = whole.as_numpy("text_output")[0].decode()
    stop = text[len(text) // 2 :][:3]
    parameters = {**GREEDY, "max_tokens": 30, "stop": f'["never to be seen", {json.dumps(stop)}]'}
    stopped = infer(client, "tiny-gpt", [("text_input", ["A list is"])], parameters=parameters)
    assert stopped.as_numpy("text_output")[0].decode() == text[: text.index(stop)]
    assert stopped.as_numpy("finish_reason")[0] == b"stop"
