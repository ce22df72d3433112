"""Which versions a setting chooses; and two versions of one model that answer differently, over gRPC, at once."""

import asyncio
import shutil

import numpy as np
import pytest
import torch
import transformers
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from export.__main__ import main as export
from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.client import Client
from server.config.version_policy import Versions
from tests.checkpoints import write_bert
from tests.serving import served

CONTROLLED = ("--model-control", "explicit")
IDS = np.array([[2, 9, 4, 30, 3]])


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("latest", (12,)),
        ("latest:2", (3, 12)),
        ("latest:9", (1, 2, 3, 12)),
        ("all", (1, 2, 3, 12)),
        ("2", (2,)),
        ("12+1", (1, 12)),
        ("1,2", (1, 2)),
        ("1+5", (1,)),
    ],
)
def test_versions_are_chosen(text, chosen):
    assert Versions.parse(text).choose([2, 12, 1, 3]) == chosen


@pytest.mark.parametrize("text", ["latest", "latest:2", "all", "3", "1+12"])
def test_the_text_of_a_policy_parses_to_the_same_policy(text):
    assert str(Versions.parse(text)) == text


@pytest.mark.parametrize("text", ["", "newest", "latest:0", "latest:", "1+", "-1", "1 2", "v1"])
def test_an_invalid_policy_is_refused(text):
    with pytest.raises(ValueError, match=r"expected latest, all, latest:N, or numbers with \+ between them"):
        Versions.parse(text)


# ---- real servers


@pytest.fixture(scope="module")
def three(traced_once, tmp_path_factory):
    """Three versions of one model with different weights: the directory of artifacts, and the PyTorch models."""
    root = tmp_path_factory.mktemp("versions")
    models = []
    for seed in range(3):
        checkpoint = root / "checkpoints" / str(seed)
        checkpoint.mkdir(parents=True)
        write_bert(checkpoint, seed)
        models.append(transformers.BertForMaskedLM.from_pretrained(checkpoint).eval())
        assert export([str(checkpoint), "--name", "bert", "--artifacts", str(root / "all"), "--target", "cpu"]) == 0
    return root / "all", models


@pytest.fixture
def artifacts(three, tmp_path):
    """The artifacts of the first two versions; `add` adds the third."""
    shutil.copytree(three[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("3"))
    return tmp_path


def add(artifacts, three, version):
    """Add a version atomically, as the export does."""
    shutil.copytree(three[0] / "bert" / version, artifacts / ".coming")
    (artifacts / ".coming").rename(artifacts / "bert" / version)


def logits(client, version=""):
    tensor = triton.InferInput("input_ids", list(IDS.shape), "INT64").set_data_from_numpy(IDS)
    answer = client.infer("bert.raw", [tensor], model_version=version)
    return answer.get_response().model_version, answer.as_numpy("logits")


def close(found, model):
    """Whether logits are within 1e-4 standard deviations of those of PyTorch."""
    with torch.no_grad():
        expected = model(torch.from_numpy(IDS)).logits.numpy()
    return np.abs(found - expected).max() <= 1e-4 * expected.std()


def index(client):
    """The state and the reason of each version, when no version is being unloaded."""
    states = {"": ("UNLOADING", "")}
    while ("UNLOADING", "") in states.values():
        states = {each.version: (each.state, each.reason) for each in client.get_model_repository_index().models}
    return states


def test_two_versions_are_served_and_a_third_one_replaces_the_oldest(three, artifacts):
    with (
        served(artifacts, *CONTROLLED, "--set", "bert.versions=latest:2") as running,
        triton.InferenceServerClient(running.target) as client,
        Client(running.target) as ours,
    ):
        assert client.get_model_metadata("bert").versions == ["1", "2"]
        assert client.get_model_metadata("bert", "1").versions == ["1"]
        for version, model in zip("12", three[1], strict=False):
            assert client.is_model_ready("bert", version)
            answered_by, found = logits(client, version)
            assert answered_by == version
            assert close(found, model)
        answered_by, found = logits(client)
        assert answered_by == "2"
        assert close(found, three[1][1])
        assert [each.version for each in client.get_inference_statistics("bert").model_stats] == ["1", "2"]
        assert client.get_inference_statistics("bert", "1").model_stats[0].inference_stats.success.count == 1

        add(artifacts, three, "3")
        assert index(client)["3"] == ("UNAVAILABLE", "not loaded; --set bert.versions=latest:2 says which ones are")
        client.load_model("bert")
        assert index(client) == {"1": ("UNAVAILABLE", "unloaded"), "2": ("READY", ""), "3": ("READY", "")}
        assert not client.is_model_ready("bert", "1")
        assert close(logits(client)[1], three[1][2])
        assert close(logits(client, "2")[1], three[1][1])
        with pytest.raises(InferenceServerException, match="model bert: found versions 2, 3, not '1'") as error:
            logits(client, "1")
        assert error.value.status() == "StatusCode.NOT_FOUND"

        client.unload_model("bert")
        assert ours.health("model/bert") == "NOT_SERVING"
        assert set(index(client).values()) == {("UNAVAILABLE", "unloaded")}
        client.load_model("bert")
        assert ours.health("model/bert") == "SERVING"
        assert close(logits(client, "2")[1], three[1][1])


def test_the_typed_service_knows_versions_too(artifacts):
    with served(artifacts, "--set", "*.versions=1+2") as running, Client(running.target) as ours:
        stub = AffinityStub(ours._channel)
        request = pb.FillMaskRequest(inputs=["a [MASK]"])
        first, second = (
            stub.FillMask(pb.FillMaskRequest(inputs=request.inputs, model_version=each)) for each in ("1", "2")
        )
        newest = stub.FillMask(request)
    assert (first.model_version, second.model_version) == ("1", "2")
    assert first.results != second.results
    assert newest == second


async def test_a_new_version_is_loaded_under_traffic_and_a_bad_one_is_not(three, artifacts):
    """No request is refused, and every response comes from the version that it names."""
    with served(artifacts, *CONTROLLED) as running:
        async with triton_aio.InferenceServerClient(running.target) as client:
            answers, over = [], asyncio.Event()

            async def send_requests(seen):
                tensor = triton_aio.InferInput("input_ids", list(IDS.shape), "INT64").set_data_from_numpy(IDS)
                while not over.is_set():
                    answer = await client.infer("bert.raw", [tensor])
                    answers.append((answer.get_response().model_version, answer.as_numpy("logits")))
                    seen.append(answers[-1][0])

            versions = [[] for _ in range(4)]  # that each client saw
            asking = [asyncio.create_task(send_requests(seen)) for seen in versions]
            while not answers:
                await asyncio.sleep(0.01)
            add(artifacts, three, "3")
            await client.load_model("bert")
            shutil.copytree(artifacts / "bert" / "3", artifacts / "bert" / "4")  # its manifest says that it is 3
            with pytest.raises(InferenceServerException, match="found bert version 3, expected bert version 4"):
                await client.load_model("bert")
            after = len(answers)
            while len(answers) < after + 8:
                await asyncio.sleep(0.01)
            over.set()
            await asyncio.gather(*asking)
    assert versions == [sorted(seen) for seen in versions]
    assert {version for version, _ in answers} == {"2", "3"}
    assert all(close(found, three[1][int(version) - 1]) for version, found in answers)
