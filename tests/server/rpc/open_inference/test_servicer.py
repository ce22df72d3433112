"""The Open Inference Protocol on a real server, called through tritonclient in the process that has our messages."""

import asyncio
import json
import queue
import urllib.request

import grpc
import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as client_messages
from tritonclient.utils import InferenceServerException

from protos import open_inference_pb2  # beside tritonclient's own `inference` package
from server.client import Client
from tests.server.rpc.affinity.test_servicer import TEXT, assert_same_scores, picture, pictures
from tests.serving import served


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.target) as client:
        yield client


def tensor(name, values, datatype="BYTES", shape=None):
    array = values if isinstance(values, np.ndarray) else np.array(values, object)
    made = triton.InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array)


def infer(client, model, inputs, **options):
    return client.infer(model, [tensor(*each) for each in inputs], **options)


# ---- the server and its models


def test_the_server_is_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny-bert")
    assert client.is_model_ready("tiny-bert", "1")
    assert client.is_model_ready("tiny-bert.raw")
    assert not client.is_model_ready("tiny-bert", "2")
    assert not client.is_model_ready("missing")


def test_the_server_lists_its_extensions(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "affinity"
    assert "binary_tensor_data" in metadata.extensions


def test_models_are_listed(client):
    listed = {(each.name, each.version, each.state) for each in client.get_model_repository_index().models}
    names = ("bert", "classifier", "embedder", "gpt", "mixer", "vit")
    assert listed == {(f"tiny-{name}", "1", "READY") for name in names}


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        (
            "tiny-bert",
            {"text": ("BYTES", [-1, 1])},
            {
                "token": ("BYTES", [-1, -1]),
                "token_id": ("INT64", [-1, -1]),
                "score": ("FP32", [-1, -1]),
                "row": ("INT64", [-1]),
            },
        ),
        (
            "tiny-bert.raw",
            {
                "input_ids": ("INT64", [-1, -1]),
                "attention_mask": ("INT64", [-1, -1]),
                "token_type_ids": ("INT64", [-1, -1]),
            },
            {"logits": ("FP32", [-1, -1, 200])},
        ),
        ("tiny-vit.raw", {"pixel_values": ("FP32", [-1, 3, 32, 32])}, {"logits": ("FP32", [-1, 10])}),
        (
            "tiny-gpt",
            {"text_input": ("BYTES", [-1, 1])},
            {"text_output": ("BYTES", [-1]), "finish_reason": ("BYTES", [-1])},
        ),
    ],
)
def test_metadata_and_configuration_agree(client, model, inputs, outputs):
    metadata = client.get_model_metadata(model)
    assert {each.name: (each.datatype, list(each.shape)) for each in metadata.inputs} == inputs
    assert {each.name: (each.datatype, list(each.shape)) for each in metadata.outputs} == outputs
    config = client.get_model_config(model).config
    assert config.max_batch_size >= 8
    assert {each.name: [-1, *each.dims] for each in config.input} == {
        name: shape for name, (_, shape) in inputs.items()
    }
    assert config.model_transaction_policy.decoupled == (model == "tiny-gpt")
    assert config.parameters["provider"].string_value == "cpu"


def test_an_unknown_model_has_no_metadata(client):
    with pytest.raises(InferenceServerException, match="missing") as error:
        client.get_model_metadata("missing")
    assert error.value.status() == "StatusCode.NOT_FOUND"


# ---- the tasks


def test_masks_are_filled(client):
    answer = infer(client, "tiny-bert", [("text", [TEXT, "[MASK] and [MASK]"])], parameters={"top_k": 2})
    assert answer.as_numpy("row").tolist() == [0, 1, 1]
    assert answer.as_numpy("token").shape == (3, 2)
    assert answer.as_numpy("score").dtype == np.float32
    assert (np.diff(answer.as_numpy("score")) <= 0).all()


def test_a_batch_dimension_is_accepted(client):
    answer = infer(client, "tiny-bert", [("text", [[TEXT], [TEXT]])])
    assert answer.as_numpy("row").tolist() == [0, 1]


def test_images_are_classified(client):
    answer = infer(client, "tiny-vit", [("image", [picture(), picture(seed=1)])], parameters={"top_k": 3})
    assert answer.as_numpy("label").shape == (2, 3)
    labels = [[f"digit {number}".encode() for number in row] for row in answer.as_numpy("class_id")]
    assert answer.as_numpy("label").tolist() == labels


def test_images_of_a_request_are_classified_independently(client):
    def scores(images):  # in the order of the classes, [n, 10]
        answer = infer(client, "tiny-vit", [("image", images)], parameters={"top_k": 10})
        order = answer.as_numpy("class_id").argsort(axis=-1)
        return np.take_along_axis(answer.as_numpy("score"), order, axis=-1)

    images = pictures(12)
    assert_same_scores(scores(images), np.concatenate([scores([image]) for image in images]))


def test_texts_are_classified_and_embedded(client):
    assert infer(client, "tiny-classifier", [("text", ["a list"])]).as_numpy("score").sum() == pytest.approx(1)
    assert infer(client, "tiny-embedder", [("text", ["a", "b"])]).as_numpy("embedding").shape == (2, 64)


def test_only_targets_are_ranked(client):
    for targets in ('["list", "set", "zero"]', "list"):
        answer = infer(client, "tiny-bert", [("text", [TEXT])], parameters={"targets": targets, "top_k": 2})
        found = {token.decode() for token in answer.as_numpy("token")[0]}
        assert found <= {"list", "set", "zero"}
        assert answer.as_numpy("score").sum() < 0.9


def test_pairs_and_functions_are_accepted(client):
    inputs = [("text", ["a list", "zero"]), ("text_pair", ["or a set", "or none"])]
    alone = infer(client, "tiny-classifier", inputs[:1]).as_numpy("score")
    paired = infer(client, "tiny-classifier", inputs).as_numpy("score")
    assert alone.shape == paired.shape == (2, 3)
    assert not np.allclose(alone, paired)
    for model, given in (("tiny-classifier", inputs), ("tiny-vit", [("image", [picture()])])):
        scores = infer(client, model, given, parameters={"function_to_apply": "sigmoid"}).as_numpy("score")
        assert not np.allclose(scores.sum(axis=-1), 1)


def test_vectors_have_the_requested_length_and_width(client):
    def vectors(**parameters):
        return infer(client, "tiny-embedder", [("text", ["a list", "b"])], parameters=parameters).as_numpy("embedding")

    plain = vectors(normalize=False)
    np.testing.assert_allclose(np.linalg.norm(vectors(), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors(dimensions=8, normalize=False), plain[:, :8], atol=1e-6)
    eight = plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(dimensions=8), eight, atol=1e-6)


def test_the_response_names_the_truncated_texts(client):
    texts = ["a list", "a list " * 50]
    answer = infer(client, "tiny-embedder", [("text", texts)], parameters={"truncate": True}).get_response()
    assert json.loads(answer.parameters["input_tokens"].string_param)[1] == 32
    assert json.loads(answer.parameters["truncated_inputs"].string_param) == [1]
    answer = infer(client, "tiny-embedder", [("text", texts[:1])]).get_response()
    assert not answer.parameters


def test_the_configuration_and_the_metadata_of_a_model_have_its_limits_and_labels(client, server):
    parameters = client.get_model_config("tiny-classifier").config.parameters
    assert json.loads(parameters["labels"].string_value) == ["bad", "fair", "good"]
    assert parameters["max_tokens"].string_value == "64"
    with grpc.insecure_channel(server.target) as channel:
        ask = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelMetadata",
            request_serializer=open_inference_pb2.ModelMetadataRequest.SerializeToString,
            response_deserializer=open_inference_pb2.ModelMetadataResponse.FromString,
        )
        properties = ask(open_inference_pb2.ModelMetadataRequest(name="tiny-vit")).properties
    assert (properties["task"], properties["image_width"]) == ("classify-image", "32")
    assert json.loads(properties["labels"])[3] == "digit 3"


def test_only_requested_outputs_are_returned(client):
    wanted = [triton.InferRequestedOutput("row")]
    answer = infer(client, "tiny-bert", [("text", [TEXT])], outputs=wanted, request_id="mine")
    assert [output.name for output in answer.get_response().outputs] == ["row"]
    assert answer.get_response().id == "mine"


def test_priority_and_timeout_are_accepted(client):
    assert infer(client, "tiny-bert", [("text", [TEXT])], priority=1, timeout=60_000_000).as_numpy("row").tolist() == [
        0
    ]


async def test_concurrent_requests_get_their_own_responses(server):
    texts = [f"{'a ' * (number % 7)}list [MASK]" for number in range(40)]
    async with triton_aio.InferenceServerClient(server.target) as client:

        async def embedding(text):
            return (await client.infer("tiny-embedder", [tensor("text", [text])])).as_numpy("embedding")[0]

        together = await asyncio.gather(*(embedding(text) for text in texts))
        alone = [await embedding(text) for text in texts[:7]]
    for number, found in enumerate(together):
        np.testing.assert_allclose(found, alone[number % 7], atol=1e-5)


# ---- generation


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


@pytest.mark.parametrize("stop", ["[" * 100_000, f"[{'1' * 5000}]"], ids=["deep", "long"])
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


# ---- raw endpoints


def close(found, expected):
    """Assert equality within 1e-4 of the standard deviation of PyTorch's outputs."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()


IDS = np.random.default_rng(0).integers(5, 200, (3, 9))
LENGTHS = [9, 4, 1]
MASK = (np.arange(9) < np.array(LENGTHS)[:, None]).astype(np.int64)


def test_raw_bert_equals_pytorch(client, checkpoints):
    model = transformers.BertForMaskedLM.from_pretrained(checkpoints["tiny-bert"]).eval()
    segments = np.random.default_rng(1).integers(0, 2, IDS.shape)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": segments}
    answer = infer(client, "tiny-bert.raw", [(name, array, "INT64") for name, array in inputs.items()])
    found = answer.as_numpy("logits")
    with torch.no_grad():
        expected = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).logits.numpy()
    for row, length in enumerate(LENGTHS):
        close(found[row, :length], expected[row, :length])
        assert not found[row, length:].any()


def test_raw_gpt_equals_pytorch(client, checkpoints):
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoints["tiny-gpt"]).eval()
    found = infer(client, "tiny-gpt.raw", [("input_ids", IDS, "INT64")]).as_numpy("logits")
    with torch.no_grad():
        close(found, model(torch.from_numpy(IDS)).logits.numpy())


def test_raw_images_equal_pytorch_and_name_their_classes(client, checkpoints):
    model = transformers.ViTForImageClassification.from_pretrained(checkpoints["tiny-vit"]).eval()
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    found = infer(client, "tiny-vit.raw", [("pixel_values", pixels, "FP32")]).as_numpy("logits")
    with torch.no_grad():
        close(found, model(torch.from_numpy(pixels)).logits.numpy())
    wanted = [triton.InferRequestedOutput("logits", class_count=2)]
    classes = infer(client, "tiny-vit.raw", [("pixel_values", pixels, "FP32")], outputs=wanted).as_numpy("logits")
    best = found[0].argmax()
    assert classes.shape == (2, 2)
    assert classes[0, 0].decode() == f"{found[0, best]:f}:{best}:digit {best}"


@pytest.mark.parametrize(("model", "output"), [("tiny-classifier", "logits"), ("tiny-embedder", "embedding")])
def test_raw_encoders_return_one_row_for_each_input(client, model, output):
    inputs = [("input_ids", IDS, "INT64"), ("attention_mask", MASK, "INT64")]
    assert len(infer(client, f"{model}.raw", inputs).as_numpy(output)) == 3


# ---- invalid requests


PIXELS = np.zeros((1, 3, 32, 31), np.float32)
WRONG = {
    "an empty text": ("tiny-bert", [("text", [""])], {}, "text[0]: found no [MASK]"),
    "no mask": ("tiny-bert", [("text", ["a"])], {}, "text[0]: found no [MASK]"),
    "too long": ("tiny-bert", [("text", ["[MASK]" + " a" * 80])], {}, "expected at most 64"),
    "not UTF-8": ("tiny-bert", [("text", [b"\xff"])], {}, "text[0]: found byte 0 that is not UTF-8"),
    "another tensor": (
        "tiny-bert",
        [("texts", [TEXT])],
        {},
        "inputs: found a tensor named 'texts', expected only text",
    ),
    "a tensor more": ("tiny-bert", [("text", [TEXT]), ("x", [TEXT])], {}, "inputs: found a tensor named 'x'"),
    "no tensor": ("tiny-bert", [], {}, "inputs: found no tensor named 'text', expected BYTES of shape [n]"),
    "a matrix": ("tiny-bert", [("text", [[TEXT, TEXT]])], {}, "text: found shape [1, 2], expected BYTES of shape [n]"),
    "a datatype": ("tiny-bert.raw", [("input_ids", IDS.astype(np.int32), "INT32")], {}, "input_ids: found INT32"),
    "a shape": ("tiny-vit.raw", [("pixel_values", PIXELS, "FP32")], {}, "FP32 of shape [n, 3, 32, 32]"),
    "no image": ("tiny-vit", [("image", [b"no image"])], {}, "image[0]: found "),
    "a truncated image": ("tiny-vit", [("image", [picture()[:-300]])], {}, "image[0]: found "),
    "left padding": (
        "tiny-bert.raw",
        [("input_ids", IDS, "INT64"), ("attention_mask", MASK[:, ::-1].copy(), "INT64")],
        {},
        "attention_mask[1]: found ",
    ),
    "an unknown token": ("tiny-bert.raw", [("input_ids", IDS + 200, "INT64")], {}, "input_ids[0, 0]: found "),
    "a parameter": (
        "tiny-bert",
        [("text", [TEXT])],
        {"k": 1},
        "parameters['k']: found an unknown name, expected one of",
    ),
    "its kind": ("tiny-bert", [("text", [TEXT])], {"top_k": "5"}, "parameters['top_k']: found '5' (string_param)"),
    "no such target": ("tiny-bert", [("text", [TEXT])], {"targets": "exceptionally"}, "targets[0]: found "),
    "no such function": ("tiny-classifier", [("text", ["a"])], {"function_to_apply": "tanh"}, "function_to_apply: "),
    "a pair too few": (
        "tiny-classifier",
        [("text", ["a", "b"]), ("text_pair", ["c"])],
        {},
        "text_pair: found 1 texts, expected 2",
    ),
    "no such width": ("tiny-embedder", [("text", ["a"])], {"dimensions": -1}, "dimensions: found -1, expected 1 to 64"),
    "the second prompt": ("tiny-gpt", [("text_input", ["a", "a " * 99])], {}, "text_input[1]: found 1"),
    "sampling": ("tiny-gpt", [("text_input", ["a"])], {"top_p": 2.0}, "top_p: found 2.0, expected more than 0"),
    "a long number": (
        "tiny-gpt",
        [("text_input", ["a"])],
        {"stop_token_ids": f"[{'1' * 5000}]"},
        "stop_token_ids: found '[1111",
    ),
    "a deep list": (
        "tiny-gpt",
        [("text_input", ["a"])],
        {"stop_token_ids": "[" * 100_000},
        "stop_token_ids: found '[[",
    ),
    "a large bias": (
        "tiny-gpt",
        [("text_input", ["a"])],
        {"logit_bias": f'{{"1": 1{"0" * 400}}}'},
        "logit_bias: found",
    ),
}


@pytest.mark.parametrize(("model", "inputs", "parameters", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_request_is_refused_and_the_next_one_works(client, model, inputs, parameters, message):
    with pytest.raises(InferenceServerException) as error:
        infer(client, model, inputs, parameters=parameters)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in error.value.message()
    assert infer(client, "tiny-bert", [("text", [TEXT])]).as_numpy("row").tolist() == [0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            triton.InferRequestedOutput("tokens"),
            "outputs[0]: found 'tokens', expected one of token, token_id, score, row",
        ),
        (triton.InferRequestedOutput("score", class_count=1), "outputs[0].parameters: found 'classification'"),
    ],
)
def test_unknown_outputs_are_refused(client, output, message):
    with pytest.raises(InferenceServerException) as error:
        infer(client, "tiny-bert", [("text", [TEXT])], outputs=[output])
    assert message in error.value.message()


def test_other_methods_are_unimplemented(client):
    with pytest.raises(InferenceServerException) as error:
        client.get_trace_settings()
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"


REQUESTS = {  # model → the inputs of a request, and their number
    "tiny-bert": ([("text", [TEXT, "[MASK] is"])], 2),
    "tiny-classifier": ([("text", ["a list", "an exception", "a set"])], 3),
    "tiny-embedder": ([("text", ["a list"])], 1),
    "tiny-vit": ([("image", [picture()] * 2)], 2),
    "tiny-gpt": ([("text_input", ["A list is"])], 1),
    "tiny-bert.raw": ([("input_ids", np.full((2, 4), 5), "INT64")], 2),
    "tiny-mixer.raw": ([("pixel_values", np.zeros((3, 3, 32, 32), np.float32), "FP32")], 3),
    "tiny-gpt.raw": ([("input_ids", np.full((2, 4), 5), "INT64")], 2),
}
DURATIONS = ("queue", "compute_input", "compute_infer", "compute_output")


@pytest.mark.parametrize(("model", "inputs", "inferences"), [(key, *value) for key, value in REQUESTS.items()])
def test_statistics_mean_the_same_as_in_triton(client, model, inputs, inferences):
    """Durations count whole requests, and the parts of a duration add up to no more than the whole."""

    def statistics_now():
        (statistics,) = client.get_inference_statistics(model).model_stats
        return statistics

    before = statistics_now()
    infer(client, model, inputs)
    after = statistics_now()
    was, now = before.inference_stats, after.inference_stats
    assert after.name == model
    assert after.last_inference >= before.last_inference
    assert after.inference_count - before.inference_count == inferences
    assert now.success.count - was.success.count == 1
    assert [getattr(now, part).count - getattr(was, part).count for part in DURATIONS] == [1] * 4
    spent = {part: getattr(now, part).ns - getattr(was, part).ns for part in DURATIONS}
    assert spent["compute_infer"] > 0
    assert sum(spent.values()) <= now.success.ns - was.success.ns
    executions = after.execution_count - before.execution_count
    assert executions >= 1
    assert sum(each.compute_infer.count for each in after.batch_stats) == after.execution_count
    assert now.fail == was.fail


def test_a_failed_request_counts_as_a_failure_without_durations(client):
    before = client.get_inference_statistics("tiny-classifier").model_stats[0].inference_stats
    with pytest.raises(InferenceServerException):
        infer(client, "tiny-classifier", [("text", ["a " * 99])])
    after = client.get_inference_statistics("tiny-classifier").model_stats[0].inference_stats
    assert after.fail.count - before.fail.count == 1
    assert [getattr(after, part) for part in ("success", *DURATIONS)] == [
        getattr(before, part) for part in ("success", *DURATIONS)
    ]


def test_statistics_without_a_name_are_those_of_all_models(client):
    assert len(client.get_inference_statistics().model_stats) == 6


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "x"])
def test_a_parameter_of_a_load_is_refused_by_name(client, name):
    request = client_messages.RepositoryModelLoadRequest(model_name="tiny-bert")
    request.parameters[name].string_param = "{}"
    with pytest.raises(grpc.RpcError) as error:
        client._client_stub.RepositoryModelLoad(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == (
        f"parameters[{name!r}]: found a parameter, expected none: a model is loaded as it was exported"
    )


def metrics(server):
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        return answer.read().decode()


def test_models_can_be_unloaded_and_loaded(artifacts):
    with (
        served(artifacts, "--models", "tiny-bert,tiny-vit") as running,
        triton.InferenceServerClient(running.target) as client,
        Client(running.target) as ours,
    ):
        infer(client, "tiny-bert", [("text", [TEXT])])
        assert 'affinity_requests_total{model="tiny-bert"' in metrics(running)
        client.unload_model("tiny-bert")
        assert not client.is_model_ready("tiny-bert")
        assert "tiny-bert" not in metrics(running)
        assert ours.health("model/tiny-bert") == "NOT_SERVING"
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            infer(client, "tiny-bert", [("text", [TEXT])])
        client.load_model("tiny-bert")
        assert ours.health("model/tiny-bert") == "SERVING"
        assert infer(client, "tiny-bert", [("text", [TEXT])]).as_numpy("row").tolist() == [0]
        assert client.get_inference_statistics("tiny-bert").model_stats[0].inference_stats.success.count == 1
        with pytest.raises(InferenceServerException, match="missing"):
            client.load_model("missing")
