"""Large requests are counted before they are read, and large responses are built in threads, off the event loop."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest

from protos import affinity_pb2 as pb
from protos.open_inference_pb2 import ModelInferRequest
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.errors import InvalidRequest
from server.observability.prometheus import Metrics
from server.rpc.affinity.servicer import AffinityService
from server.rpc.open_inference.servicer import OpenInferenceService

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Context:
    """The context of a call without a deadline."""

    def time_remaining(self):
        return None


@pytest.fixture
def jobs(repository, monkeypatch):
    """Counts the jobs that the model's threads get."""
    pool, counted = repository.get("tiny-bert").threads, Counter()
    submit = pool.submit

    def count(*work):
        counted["jobs"] += 1
        return submit(*work)

    monkeypatch.setattr(pool, "submit", count)
    return counted


@pytest.mark.parametrize(("top_k", "expected"), [(5, 0), (200, 2)])
async def test_candidates_are_added_in_a_thread(repository, jobs, top_k, expected):
    request = pb.FillMaskRequest(inputs=["[MASK] [MASK]"], top_k=top_k)
    response = await AffinityService(repository, Metrics()).FillMask(request, Context())
    assert [len(mask.candidates) for mask in response.results[0].masks] == [top_k] * 2
    assert jobs["jobs"] == expected  # fill the masks, and add many candidates to the response


async def test_many_candidates_are_made_in_chunks(repository, jobs):
    request = pb.FillMaskRequest(inputs=["[MASK] [MASK]"] * 100, top_k=200)
    response = await AffinityService(repository, Metrics()).FillMask(request, Context())
    assert len({text.masks[1].candidates[0].token for text in response.results}) == 1
    assert 5 < jobs["jobs"] < 10


@pytest.mark.parametrize(("texts", "expected"), [(1, 0), (200, 2)])
async def test_vectors_are_added_in_a_thread(repository, jobs, texts, expected):
    response = await AffinityService(repository, Metrics()).Embed(pb.EmbedRequest(inputs=["a list"] * texts), Context())
    assert len({tuple(np.round(result.values, 5)) for result in response.results}) == 1
    assert jobs["jobs"] == expected


@pytest.mark.parametrize(("top_k", "expected"), [(5, 0), (200, 3)])
async def test_candidates_become_tensors_in_a_thread(repository, jobs, top_k, expected):
    request = ModelInferRequest(model_name="tiny-bert")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"[MASK] [MASK]")
    request.parameters["top_k"].int64_param = top_k
    response = await service(repository).ModelInfer(request, Context())
    assert list(response.outputs[0].shape) == [2, top_k]
    assert jobs["jobs"] == expected  # the jobs above, and writing the tensors


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("FillMask", pb.FillMaskRequest(inputs=["ab"] * 100_000), "inputs"),
        ("ClassifyText", pb.ClassifyTextRequest(inputs=["ab"] * 100_000), "inputs"),
        ("Embed", pb.EmbedRequest(inputs=["ab"] * 100_000), "inputs"),
        ("ClassifyImage", pb.ClassifyImageRequest(model="tiny-vit", images=[b"ab"] * 100_000), "images"),
        ("CountTokens", pb.CountTokensRequest(model="tiny-bert", inputs=["ab"] * 100_000), "inputs"),
    ],
)
async def test_inputs_are_counted_before_they_are_read(repository, method, request_, field):
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=f"{field}: found 100000 inputs, expected at most 1024 inputs"):
            await getattr(AffinityService(repository, Metrics()), method)(request_, Context())
        assert tracemalloc.get_traced_memory()[1] < 100_000  # bytes, less than one for each input
    finally:
        tracemalloc.stop()


async def test_more_texts_than_the_queue_holds_are_not_read(repository):
    request = ModelInferRequest(model_name="tiny-embedder", raw_input_contents=[bytes(4 * 2000)])
    request.inputs.add(name="text", datatype="BYTES", shape=[2000])
    with pytest.raises(InvalidRequest, match="text: found 2000 inputs, expected at most 1024 inputs"):
        await service(repository).ModelInfer(request, Context())


def service(repository):
    return OpenInferenceService(Settings(), repository, Metrics(), InFlight("stopping"))


MANY = 100_000
HOSTILE = {
    "tensors of one name": (
        [{"name": "text", "datatype": "BYTES", "shape": [1]}] * MANY,
        "inputs: found 100000 tensors, expected each of text once",
    ),
    "tensors of other names": (
        [{"name": f"{n}", "datatype": "BYTES", "shape": [1]} for n in range(MANY)],
        "inputs: found a tensor named '0', expected only text",
    ),
    "dimensions": (
        [{"name": "text", "datatype": "BYTES", "shape": [(1 << 62) + 1] * MANY}],
        "text: found 100000 dimensions, expected at most 8 sizes of 1 or more",
    ),
}


@pytest.mark.parametrize(("tensors", "message"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_impossible_tensors_are_refused_before_their_sizes_are_multiplied(repository, tensors, message):
    """The product of that many sizes has more than a million digits."""
    request = ModelInferRequest(model_name="tiny-bert", inputs=tensors)
    with pytest.raises(InvalidRequest, match=message):
        await service(repository).ModelInfer(request, Context())
