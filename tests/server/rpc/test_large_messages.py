"""Much is counted before it is read, and told in threads, for the event loop has others to serve; little at once."""

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
    """Of a call without a deadline."""

    def time_remaining(self):
        return None


@pytest.fixture
def jobs(repository, monkeypatch):
    """How often a thread of those for this was given something to do."""
    pool, counted = repository.get("tiny-bert").prepare, Counter()
    submit = pool.submit

    def count(*work):
        counted["jobs"] += 1
        return submit(*work)

    monkeypatch.setattr(pool, "submit", count)
    return counted


@pytest.mark.parametrize(("top_k", "expected"), [(5, 2), (200, 3)])
async def test_candidates_are_told(repository, jobs, top_k, expected):
    request = pb.FillMaskRequest(inputs=["[MASK] [MASK]"], top_k=top_k)
    answer = await AffinityService(repository, Metrics()).FillMask(request, Context())
    assert [len(mask.candidates) for mask in answer.results[0].masks] == [top_k] * 2
    assert jobs["jobs"] == expected  # to read the text, to fill its masks, and to tell many


async def test_many_candidates_are_made_some_at_a_time(repository, jobs):
    request = pb.FillMaskRequest(inputs=["[MASK] [MASK]"] * 100, top_k=200)
    answer = await AffinityService(repository, Metrics()).FillMask(request, Context())
    assert len({text.masks[1].candidates[0].token for text in answer.results}) == 1
    assert 5 < jobs["jobs"] < 10


@pytest.mark.parametrize(("texts", "expected"), [(1, 1), (200, 2)])
async def test_vectors_are_told(repository, jobs, texts, expected):
    answer = await AffinityService(repository, Metrics()).Embed(pb.EmbedRequest(inputs=["a list"] * texts), Context())
    assert len({tuple(np.round(result.values, 5)) for result in answer.results}) == 1
    assert jobs["jobs"] == expected


@pytest.mark.parametrize(("top_k", "expected"), [(5, 2), (200, 4)])
async def test_candidates_are_told_as_tensors(repository, jobs, top_k, expected):
    request = ModelInferRequest(model_name="tiny-bert")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"[MASK] [MASK]")
    request.parameters["top_k"].int64_param = top_k
    answer = await door(repository).ModelInfer(request, Context())
    assert list(answer.outputs[0].shape) == [2, top_k]
    assert jobs["jobs"] == expected  # and to write their tokens


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
async def test_inputs_are_counted_before_one_is_looked_at(repository, method, request_, field):
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=f"{field}: found 100000 inputs, expected at most 1024 inputs"):
            await getattr(AffinityService(repository, Metrics()), method)(request_, Context())
        assert tracemalloc.get_traced_memory()[1] < 100_000  # bytes: not one for each
    finally:
        tracemalloc.stop()


async def test_more_texts_than_may_wait_are_not_even_read(repository):
    request = ModelInferRequest(model_name="tiny-embedder", raw_input_contents=[bytes(4 * 2000)])
    request.inputs.add(name="text", datatype="BYTES", shape=[2000])
    with pytest.raises(InvalidRequest, match="text: found 2000 inputs, expected at most 1024 inputs"):
        await door(repository).ModelInfer(request, Context())


def door(repository):
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


@pytest.mark.parametrize(("tensors", "said"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_of_what_can_be_no_request_nothing_is_counted_or_multiplied(repository, tensors, said):
    """The product of so many sizes has a million digits and more."""
    request = ModelInferRequest(model_name="tiny-bert", inputs=tensors)
    with pytest.raises(InvalidRequest, match=said):
        await door(repository).ModelInfer(request, Context())
