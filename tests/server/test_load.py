"""Real servers with many concurrent requests: each gets its own response, or an error with a retry hint."""

import asyncio
import re
import urllib.request
from collections import Counter

import grpc
import numpy as np
import pytest

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.status import RETRY_AFTER
from tests.server.images.files import file_of, picture
from tests.server.tasks.test_tasks import WORDS
from tests.serving import served

OK, FULL = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
MASKED, CLASSIFIED, EMBEDDED, PICTURES = 500, 250, 250, 100
LARGE_QUEUE = ("--set", "*.max_queue_requests=10000", "--set", "*.max_queue_seconds=3600")
SHARED = ("--set", "*.max_delay_seconds=0.1")  # a batch waits for more inputs, however fast the server is


def distinct_texts(count, seed, start=""):
    """Distinct texts of 3 to 30 words."""
    random, found = np.random.default_rng(seed), {}
    while len(found) < count:
        found[f"{start} {' '.join(random.choice(WORDS, random.integers(2, 30)))}"] = None
    return list(found)


def distinct_images(count):
    """Distinct small files of three formats and many sizes."""
    random = np.random.default_rng(4)
    return [
        file_of(picture(*random.integers(30, 60, 2), seed=seed), ("PNG", "JPEG", "WEBP")[seed % 3])
        for seed in range(count)
    ]


async def call_all(target, requests):
    """The responses to (method, request) pairs, which are sent concurrently over a few connections."""
    channels = [grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    stubs = [AffinityStub(channel) for channel in channels]
    try:
        calls = [getattr(stubs[n % 4], method)(request) for n, (method, request) in enumerate(requests)]
        return await asyncio.gather(*calls, return_exceptions=True)
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


# ---- each request gets its own response


def numbers(answer):
    """The contents of a response: ids that must be equal, and numbers that must be close."""
    (result,) = answer.results
    match result:
        case pb.FilledText():
            candidates = [each for mask in result.masks for each in mask.candidates]
            return [mask.position for mask in result.masks], {each.token: each.score for each in candidates}
        case pb.Classification():
            return [], {each.class_id: each.score for each in result.classes}
    return [], dict(enumerate(result.values))


async def test_a_thousand_requests_to_four_models_get_the_responses_that_they_get_unbatched(artifacts):
    """Distinct texts of mixed lengths and image files, compared with a server without batching."""
    requests = [
        *(("FillMask", pb.FillMaskRequest(inputs=[text], top_k=3)) for text in distinct_texts(MASKED, 1, "[MASK] a")),
        *(("ClassifyText", pb.ClassifyTextRequest(inputs=[text])) for text in distinct_texts(CLASSIFIED, 2)),
        *(
            ("Embed", pb.EmbedRequest(inputs=[text], truncate=True, dimensions=24))
            for text in distinct_texts(EMBEDDED, 3)
        ),
        *(("ClassifyImage", pb.ClassifyImageRequest(images=[file], top_k=10)) for file in distinct_images(PICTURES)),
    ]
    order = np.random.default_rng(0).permutation(len(requests))
    requests = [requests[number] for number in order]
    models = ("--models", "tiny-bert,tiny-classifier,tiny-embedder,tiny-vit")
    with served(artifacts, *models, *LARGE_QUEUE, *SHARED) as batching:
        together = await call_all(batching.target, requests)
        metrics = urllib.request.urlopen(batching.url("/metrics")).read().decode()
    with served(artifacts, *models, *LARGE_QUEUE, "--set", "*.max_batch_size=1") as unbatched:
        alone = await call_all(unbatched.target, requests)
    for found, expected in zip(map(numbers, together), map(numbers, alone), strict=True):
        assert found[0] == expected[0]
        for key, value in expected[1].items():
            # Of two equally likely tokens, either may be the third.
            assert abs(found[1].get(key, min(found[1].values())) - value) <= 1e-6
    batches = sum(map(float, re.findall(r"^affinity_batch_rows_count\{.*\} (.+)$", metrics, re.M)))
    assert batches < len(requests)  # how much fewer depends on the machine


# ---- a full queue


@pytest.fixture(scope="module")
def narrow(artifacts):
    """A server whose queues hold eight inputs, and forty tokens for the classifier.

    Fill-mask waits for a fuller batch than its queue holds, so that its queue is full for half a second.
    """
    few = ("--set", "*.max_queue_requests=8", "--set", "tiny-classifier.max_queue_tokens=40")
    few += ("--set", "tiny-bert.max_delay_seconds=0.5")
    with served(artifacts, "--models", "tiny-bert,tiny-classifier,tiny-vit", *few) as running:
        yield running


async def outcome(call):
    """The status of a call, its response or error text, and its trailers."""
    try:
        return OK, await call, None
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details(), dict(error.trailing_metadata())


@pytest.mark.parametrize("inputs", [1, 2, 8])
async def test_a_full_queue_refuses_requests_with_a_retry_hint(narrow, inputs):
    async with grpc.aio.insecure_channel(narrow.target) as channel:
        stub = AffinityStub(channel)
        request = pb.FillMaskRequest(inputs=["A [MASK] is a sequence."] * inputs)
        answers = await asyncio.gather(*(outcome(stub.FillMask(request)) for _ in range(200)))
        codes = Counter(code for code, *_ in answers)
        assert set(codes) == {OK, FULL}
        for code, answer, trailers in answers:
            if code is FULL:
                assert answer.startswith("the queue of tiny-bert is full: ")
                assert 50 <= int(trailers[RETRY_AFTER]) <= 30_000
            else:
                assert len(answer.results) == inputs
        assert len((await stub.FillMask(request)).results) == inputs  # the queue has space again


async def test_a_refused_request_is_answered_after_retries(narrow):
    async with grpc.aio.insecure_channel(narrow.target) as channel:
        stub = AffinityStub(channel)
        request = pb.ClassifyTextRequest(inputs=["a list of items"])

        async def until_answered():
            while (answer := await outcome(stub.ClassifyText(request)))[0] is FULL:
                pass
            return answer

        answers = await asyncio.gather(*(until_answered() for _ in range(60)))
    assert {code for code, *_ in answers} == {OK}


@pytest.mark.parametrize(
    ("method", "request_", "message"),
    [
        (
            "FillMask",
            pb.FillMaskRequest(inputs=["[MASK]"] * 9),
            "inputs: found 9 inputs, expected at most 8 inputs and 512 tokens in a request",
        ),
        (
            "ClassifyText",
            pb.ClassifyTextRequest(inputs=["the caller may catch it"] * 8),
            "tokens together, expected at most 8 inputs and 40 tokens in a request",
        ),
        (
            "ClassifyImage",
            pb.ClassifyImageRequest(images=[b"not even an image"] * 9),
            "images: found 9 inputs, expected at most 8 inputs",
        ),
    ],
)
async def test_a_request_larger_than_the_queue_is_invalid(narrow, method, request_, message):
    async with grpc.aio.insecure_channel(narrow.target) as channel:
        code, text, trailers = await outcome(getattr(AffinityStub(channel), method)(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in text
    assert RETRY_AFTER not in trailers
