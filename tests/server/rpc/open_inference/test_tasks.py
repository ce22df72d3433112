"""The tasks over the Open Inference Protocol, called through tritonclient."""

import asyncio
import json

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from protos import open_inference_pb2  # beside tritonclient's own `inference` package
from tests.server.rpc.affinity.test_servicer import TEXT, assert_same_scores, picture, pictures
from tests.server.rpc.open_inference.requests import infer, tensor


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


@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_a_negative_priority_or_timeout_is_refused(server, name):
    request = open_inference_pb2.ModelInferRequest(model_name="tiny-bert")
    request.parameters[name].int64_param = -1  # tritonclient does not send it
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request.SerializeToString(), timeout=60)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details().startswith(f"parameters['{name}']: found -1 (int64_param), expected ")


async def test_concurrent_requests_get_their_own_responses(server):
    texts = [f"{'a ' * (number % 7)}list [MASK]" for number in range(40)]
    async with triton_aio.InferenceServerClient(server.target) as client:

        async def embedding(text):
            return (await client.infer("tiny-embedder", [tensor("text", [text])])).as_numpy("embedding")[0]

        together = await asyncio.gather(*(embedding(text) for text in texts))
        alone = [await embedding(text) for text in texts[:7]]
    for number, found in enumerate(together):
        np.testing.assert_allclose(found, alone[number % 7], atol=1e-5)
