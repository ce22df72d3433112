"""The server behind Ray Serve on a real cluster of two nodes (make ray-test)."""

import os
import queue
import shutil
import signal

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from tritonclient.grpc import InferenceServerClient, InferInput

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.client import Client
from server.client.connection import Connection
from server.status import DETAILS
from tests.artifacts import next_version
from tests.ray.cluster import BIN, running_cluster, wait_until
from tests.ray.load import load
from tests.serving import ROOT

MODELS = ("bert-mini", "gpt-mini", "vit-digits")
TEXT = "The [MASK] statement raises an exception."
IMAGE = (ROOT / "models" / "pretrained" / "vit-digits" / "example.png").read_bytes()
TIMEOUT_S = 120
MORE = 100  # answers after an event, of which none may be missing

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def root(bundled, tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    for name in MODELS:
        shutil.copytree(bundled / name, root / name)
    return root


@pytest.fixture(scope="module")
def cluster(root):
    assert (BIN / "serve").exists(), "found no .venv-ray; make ray-test makes it"
    with running_cluster(root) as cluster:
        cluster.deployment("gpt-mini")["autoscaling_config"] = {
            "min_replicas": 1,
            "max_replicas": 2,
            "target_ongoing_requests": 1,
            "upscale_delay_s": 1,
            "downscale_delay_s": 3,
            "look_back_period_s": 2,
            "metrics_interval_s": 1,
        }
        cluster.deploy()
        yield cluster


@pytest.fixture(scope="module")
def channel(cluster):
    """A channel with the retries of the shipped client."""
    with grpc.insecure_channel(cluster.target, options=Connection(cluster.target).options) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel):
    return AffinityStub(channel)


@pytest.fixture
def triton(cluster):
    with InferenceServerClient(cluster.target) as client:
        yield client


def filled(stub):
    request = pb.FillMaskRequest(model="bert-mini", inputs=[TEXT])
    return stub.FillMask(request, timeout=TIMEOUT_S)


def generated(stub, max_tokens=8):
    request = pb.GenerateRequest(prompts=[pb.Prompt(text="A list is")], max_tokens=max_tokens, ignore_eos=True, seed=1)
    return stub.Generate(request, timeout=TIMEOUT_S)


def tensor(name, value):
    found = InferInput(name, [1], "BYTES")
    found.set_data_from_numpy(np.array([value], object))
    return found


def test_all_tasks_and_the_stream_of_the_typed_service(stub):
    assert filled(stub).results[0].masks[0].candidates[0].token_str
    assert (
        stub.ClassifyImage(pb.ClassifyImageRequest(images=[IMAGE]), timeout=TIMEOUT_S).results[0].classes[0].label
        == "4"
    )
    responses = list(generated(stub))
    assert len(responses) > 1
    assert sum(len(response.token_ids) for response in responses) == 8


def test_all_tasks_of_the_open_inference_protocol(triton, stub):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("gpt-mini")
    token = triton.infer("bert-mini", [tensor("text", TEXT.encode())]).as_numpy("token")
    assert token[0][0].decode() == filled(stub).results[0].masks[0].candidates[0].token_str
    label = triton.infer("vit-digits", [tensor("image", IMAGE)]).as_numpy("label")
    assert label[0][0] == b"4"
    text = triton.infer("gpt-mini", [tensor("text_input", b"A list is")], parameters={"max_tokens": 8, "seed": 1})
    assert text.as_numpy("text_output")[0]
    assert [model.name for model in triton.get_model_repository_index().models] == list(MODELS)


def test_one_stream_for_several_models(triton):
    received: queue.Queue = queue.Queue()
    triton.start_stream(lambda result, error: received.put((result, error)))
    prompt = tensor("text_input", b"A list is")
    triton.async_stream_infer("gpt-mini", [prompt], request_id="g", parameters={"max_tokens": 4})
    triton.async_stream_infer("bert-mini", [tensor("text", TEXT.encode())], request_id="b")
    triton.async_stream_infer("missing", [tensor("text", TEXT.encode())], request_id="m")
    finished, errors = [], []
    while len(finished) + len(errors) < 3:
        result, error = received.get(timeout=TIMEOUT_S)
        if error:
            errors.append(error.message())
        elif result.get_response().parameters["triton_final_response"].bool_param:
            finished.append(result.get_response().id)
    triton.stop_stream()
    assert sorted(finished) == ["b", "g"]
    assert "found 'missing'" in errors[0]


def test_errors_are_those_of_the_server(stub):
    with pytest.raises(grpc.RpcError) as failed:
        stub.FillMask(pb.FillMaskRequest(model="bert-mini", inputs=["no mask"]), timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details().startswith("inputs[0]: found no [MASK]")
    assert DETAILS in dict(failed.value.trailing_metadata())


def test_a_deadline_that_expires_ends_the_generation(stub):
    request = pb.GenerateRequest(prompts=[pb.Prompt(text="A list is")] * 32, max_tokens=200, ignore_eos=True)
    with pytest.raises(grpc.RpcError) as failed:
        list(stub.Generate(request, timeout=0.3))
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_health(cluster, channel):
    assert HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_S).status == HealthCheckResponse.SERVING


def test_requests_are_spread_over_replicas_and_counted_in_the_metrics_of_ray(cluster, stub):
    def served():
        counts = {}
        for labels, value in cluster.samples("ray_affinity_requests_total"):
            if labels["model"] == "bert-mini" and labels["status"] == "OK":
                counts[labels["replica"]] = value
        return [count for count in counts.values() if count]

    with load(lambda: filled(stub), callers=4) as calls:
        wait_until(lambda: len(served()) == 2, "requests on both replicas")
    assert not calls.errors


@pytest.mark.parametrize("deployment", ["bert-mini", "ingress"])
def test_a_replica_that_is_killed_loses_no_request_of_the_client(cluster, deployment):
    callers = 8
    with (
        Client(cluster.target, timeout_s=TIMEOUT_S) as client,
        load(lambda: client.fill_mask([TEXT * 12] * 32, model="bert-mini"), callers=callers) as calls,
    ):
        wait_until(lambda: calls.count() >= callers * 3, "answers")
        before = cluster.replicas(deployment)
        assert len(before) == 2
        name, process = min(before.items())
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: name not in cluster.replicas(deployment), "the end of the replica")
        wait_until(lambda: len(cluster.replicas(deployment)) == 2, "another replica")
        seen = calls.count()
        wait_until(lambda: calls.count() >= seen + callers * 3, "further answers")
    assert not calls.errors


def test_replicas_come_with_load_and_go_without(cluster, stub):
    wait_until(lambda: len(cluster.replicas("gpt-mini")) == 1, "one replica")
    with load(lambda: list(generated(stub, 60)), callers=8) as calls:
        wait_until(lambda: len(cluster.replicas("gpt-mini")) == 2, "a second replica")
    assert not calls.errors
    wait_until(lambda: len(cluster.replicas("gpt-mini")) == 1, "the end of one replica")
    assert list(generated(stub))


def test_a_new_version_is_rolled_out_under_load(cluster, root, stub):
    next_version(root, "bert-mini")
    before = cluster.replicas("bert-mini")
    with load(lambda: filled(stub).model_version, callers=4) as calls:
        wait_until(lambda: calls.count() >= MORE, "answers")
        cluster.deployment("bert-mini")["user_config"] = {"versions": "2"}
        cluster.deploy()
        wait_until(lambda: calls.answers[-MORE:] == ["2"] * MORE, "answers of the new version alone")
    assert not calls.errors
    assert cluster.replicas("bert-mini") == before  # the processes stay


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(cluster, root, stub):
    damaged = next_version(root, "bert-mini")
    (damaged / "cpu.onnx").write_bytes(b"damaged")
    served = cluster.deployment("bert-mini")["user_config"]["versions"]
    with load(lambda: filled(stub).model_version, callers=2) as calls:
        wait_until(lambda: calls.count(), "answers")
        cluster.deployment("bert-mini")["user_config"] = {"versions": damaged.name}
        cluster.begin_deploy()
        reason = wait_until(lambda: cluster.failure("bert-mini"), "the failure of the deployment")
        cluster.deployment("bert-mini")["user_config"] = {"versions": served}
        cluster.deploy()
    assert "cpu.onnx: found 7 bytes" in reason
    assert set(calls.answers) == {served}
    assert not calls.errors
