"""The Open Inference Protocol on a real server, called through tritonclient: server and models, statistics, loading."""

import urllib.request

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as client_messages
from tritonclient.utils import InferenceServerException

from server.client import Client
from tests.server.rpc.affinity.test_servicer import TEXT, picture
from tests.server.rpc.open_inference.requests import infer
from tests.serving import served


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


@pytest.fixture(scope="module")
def controlled(artifacts):
    """A server of its own that loads and unloads models on request."""
    with served(artifacts, "--models", "tiny-bert,tiny-vit", "--model-control", "explicit") as running:
        yield running


@pytest.mark.parametrize("name", ["config", "file:1/model.onnx", "x"])
def test_a_parameter_of_a_load_is_refused_by_name(controlled, name):
    request = client_messages.RepositoryModelLoadRequest(model_name="tiny-bert")
    request.parameters[name].string_param = "{}"
    with triton.InferenceServerClient(controlled.target) as client, pytest.raises(grpc.RpcError) as error:
        client._client_stub.RepositoryModelLoad(request)
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.value.details() == (
        f"parameters[{name!r}]: found a parameter, expected none: a model is loaded as it was exported"
    )


def test_models_are_not_loaded_and_unloaded_by_default(client):
    for request in (client.load_model, client.unload_model):
        for name in ("tiny-bert", "missing"):
            with pytest.raises(InferenceServerException, match="--model-control explicit enables it") as error:
                request(name)
            assert error.value.status() == "StatusCode.UNAVAILABLE"
    assert client.is_model_ready("tiny-bert")


def metrics(server):
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        return answer.read().decode()


def test_models_can_be_unloaded_and_loaded(controlled):
    with triton.InferenceServerClient(controlled.target) as client, Client(controlled.target) as ours:
        infer(client, "tiny-bert", [("text", [TEXT])])
        assert 'affinity_requests_total{model="tiny-bert"' in metrics(controlled)
        client.unload_model("tiny-bert")
        assert not client.is_model_ready("tiny-bert")
        assert "tiny-bert" not in metrics(controlled)
        assert ours.health("model/tiny-bert") == "NOT_SERVING"
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            infer(client, "tiny-bert", [("text", [TEXT])])
        client.load_model("tiny-bert")
        assert ours.health("model/tiny-bert") == "SERVING"
        assert infer(client, "tiny-bert", [("text", [TEXT])]).as_numpy("row").tolist() == [0]
        assert client.get_inference_statistics("tiny-bert").model_stats[0].inference_stats.success.count == 1
        with pytest.raises(InferenceServerException, match="missing"):
            client.load_model("missing")
