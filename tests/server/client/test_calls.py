"""What both clients do with the calls of one request: deadlines, retries, parts, streams. Against a stand-in."""

import asyncio
import gc

import grpc
import pytest

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from server.client import AsyncClient, CallFailed, Unreachable
from server.client.calls import IN_FLIGHT, MAX_BYTES, TYPED, Call, ChunkLimits, chunks, one
from server.client.catalogue import MAX_LISTINGS, Catalogue
from server.errors import InvalidRequest, NotReady, Overloaded, WrongTask
from tests.server.client.stand_in import BOTH, WAIT_S, StandIn, connected, serving

PUSHBACK_S = 0.3


@pytest.fixture(params=BOTH)
def kind(request):
    return request.param


@pytest.fixture
async def stand_in():
    return StandIn()


@pytest.fixture
async def target(stand_in):
    async with serving(stand_in) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
async def client(kind, target):
    async with connected(kind, target) as client:
        yield client


# ---- retries


async def test_calls_are_sent_again_while_the_server_is_not_ready(client, stand_in):
    stand_in.errors = [NotReady("loading"), NotReady("still loading")]
    assert await client.run("embed", ["abc"], model="m") == [[3, 1]]
    assert len(stand_in.requests) == 3


async def test_calls_are_sent_again_when_an_overloaded_server_says(client, stand_in):
    stand_in.errors = [Overloaded("full", retry_after_s=PUSHBACK_S)]
    assert await client.run("embed", ["abc"], model="m") == [[3, 1]]
    first, second = stand_in.times
    assert second - first > 0.9 * PUSHBACK_S  # without pushback it would be 0.12 s at most


async def test_large_requests_are_sent_again_too(client, stand_in):
    stand_in.errors = [NotReady("loading")]
    assert await client.run("embed", ["a" * 10 * MAX_BYTES], model="m") == [[10 * MAX_BYTES, 1]]


async def test_streams_are_begun_again(client, stand_in):
    stand_in.errors = [NotReady("loading"), Overloaded("full", retry_after_s=0.01)]
    await client.parts(3)
    assert len(stand_in.requests) == 3


async def test_a_call_is_sent_five_times_at_most(client, stand_in):
    stand_in.errors = [Overloaded("full", retry_after_s=0.01)] * 9
    with pytest.raises(CallFailed, match="full") as failed:
        await client.run("embed", ["abc"], model="m")
    assert (failed.value.code.name, failed.value.cause.retry_after_s) == ("RESOURCE_EXHAUSTED", 0.01)
    assert len(stand_in.requests) == 5


@pytest.mark.parametrize("error", [WrongTask("it generates"), InvalidRequest("top_k", "0", "1 or more")], ids=repr)
async def test_other_errors_are_final(client, stand_in, error):
    stand_in.errors = [error]
    with pytest.raises(CallFailed, match=str(error)):
        await client.run("embed", ["abc"], model="m")
    assert len(stand_in.requests) == 1


async def test_without_retries_the_first_error_is_final(kind, target, stand_in):
    stand_in.errors = [NotReady("loading")]
    async with connected(kind, target, retries=False) as client:
        with pytest.raises(CallFailed, match="loading") as failed:
            await client.run("embed", ["abc"], model="m")
    assert failed.value.cause.reason == "NOT_READY"
    assert len(stand_in.requests) == 1


async def test_a_missing_server_is_unreachable(kind):
    async with connected(kind, "127.0.0.1:1") as client:
        with pytest.raises(Unreachable, match=r"no server answers at 127\.0\.0\.1:1"):
            await client.run("models")


# ---- deadlines


async def test_every_call_has_a_deadline(kind, target, stand_in):
    stand_in.answering.clear()
    async with connected(kind, target, timeout_s=0.5) as client:
        with pytest.raises(CallFailed) as failed:
            await client.run("embed", ["abc"], model="m")
        assert failed.value.code.name == "DEADLINE_EXCEEDED"
        with pytest.raises(CallFailed) as failed:
            await client.parts(2)
        assert failed.value.code.name == "DEADLINE_EXCEEDED"


# ---- many inputs


async def test_many_inputs_are_sent_in_parts_in_their_order(kind, target, stand_in):
    stand_in.max_inputs = 2 * IN_FLIGHT + 1
    reports = []
    async with connected(kind, target, on_progress=lambda *report: reports.append(report)) as client:
        vectors = await client.run("embed_array", ["a" * n for n in range(1, 24)], model="m")
    assert vectors[:, 0].tolist() == list(range(1, 24))
    assert [len(request.inputs) for request in stand_in.requests] == [2] * 11 + [1]
    assert stand_in.most_running <= IN_FLIGHT
    assert reports == [(min(n, 23), 23) for n in range(2, 26, 2)]


async def test_a_single_part_has_no_progress(kind, target):
    async with connected(kind, target, on_progress=lambda *report: pytest.fail(str(report))) as client:
        assert await client.run("embed", ["a", "bc"], model="m") == [[1, 1], [2, 1]]


async def test_a_part_never_has_more_tokens_than_a_request_may(client, stand_in):
    stand_in.max_tokens, stand_in.max_request_tokens = 100, 3 * IN_FLIGHT * 100 + 99
    assert len(await client.run("embed", ["a"] * 7, model="m")) == 7
    assert sorted(len(request.inputs) for request in stand_in.requests) == [1, 3, 3]


async def test_large_inputs_are_sent_one_by_one(client, stand_in):
    texts = ["a" * (MAX_BYTES - 1), "b", "c", "d" * MAX_BYTES, "é" * MAX_BYTES]
    assert [size for size, _ in await client.run("embed", texts, model="m")] == list(map(len, texts))
    assert sorted(len(request.inputs) for request in stand_in.requests) == [1, 1, 1, 2]  # b fits beside a, c does not


async def test_pairs_and_counts_keep_their_order(client, stand_in):
    stand_in.max_inputs = IN_FLIGHT
    texts, pairs = list("abcdefg"), list("1234567")
    results = await client.run("classify_text", texts, text_pairs=pairs, model="m")
    assert [result.classes[0].label for result in results] == [f"{a} {b}" for a, b in zip(texts, pairs, strict=True)]
    assert (await client.run("count_tokens", ["a", "bb", "ccc"], model="m")).tokens == [1, 2, 3]
    assert len(stand_in.requests) == 10


async def test_an_error_has_the_number_of_the_input_among_all(client, stand_in):
    stand_in.max_inputs = IN_FLIGHT * 2

    stand_in.refuse = lambda request: "bad" in request.inputs
    with pytest.raises(CallFailed) as failed:
        await client.run("embed", ["a", "b", "c", "bad", "d"], model="m")
    assert str(failed.value) == "inputs[3]: found refused, expected inputs[7] or a text"
    assert failed.value.cause.violations == (("inputs[3]", "found refused, expected inputs[7] or a text"),)


async def test_a_failed_part_cancels_the_others(client, stand_in):
    stand_in.max_inputs = 1
    stand_in.answering.clear()
    stand_in.refuse = lambda request: request.inputs[0] == "bad"
    with pytest.raises(CallFailed, match="refused"):
        await client.run("embed", ["bad"] + ["a"] * 20, model="m")
    assert len(stand_in.requests) <= IN_FLIGHT
    async with asyncio.timeout(WAIT_S):
        while stand_in.running:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], ["0:0"]),
        ([9], ["0:1"]),
        ([1, 1, 1, 1], ["0:3", "3:4"]),
        ([4, 4, 4], ["0:2", "2:3"]),
        ([1, 9], ["0:1", "1:2"]),
    ],
)
def test_chunks_are_as_large_as_the_limits_allow(sizes, expected):
    assert [f"{part.start}:{part.stop}" for part in chunks(sizes, ChunkLimits(inputs=3, size=8))] == expected


# ---- models


def index(*versions):
    models = [oip.RepositoryIndexResponse.ModelIndex(name="m", version=each, state="READY") for each in versions]
    return oip.RepositoryIndexResponse(models=models)


def test_models_are_listed_again_if_a_version_was_unloaded_meanwhile():
    steps = Catalogue().models()
    next(steps)
    assert [call.request.version for call in steps.send([index("1")])] == ["1"]
    [again] = steps.throw(CallFailed(grpc.StatusCode.NOT_FOUND, "unloaded"))
    assert again.path.endswith("/RepositoryIndex")
    assert [call.request.version for call in steps.send([index("2")])] == ["2"]
    with pytest.raises(StopIteration) as end:
        steps.send([oip.ModelConfigResponse()])
    assert [model.version for model in end.value.value] == ["2"]


def test_models_are_not_listed_for_ever():
    steps = Catalogue().models()
    next(steps)
    unloaded = CallFailed(grpc.StatusCode.NOT_FOUND, "unloaded")
    for _ in range(MAX_LISTINGS - 1):
        steps.send([index("1")])
        steps.throw(unloaded)
    steps.send([index("1")])
    with pytest.raises(CallFailed, match="unloaded"):
        steps.throw(unloaded)


def test_other_errors_of_a_listing_are_final():
    steps = Catalogue().models()
    next(steps)
    with pytest.raises(CallFailed, match="internal"):
        steps.throw(CallFailed(grpc.StatusCode.INTERNAL, "internal"))


async def test_steps_can_answer_to_an_error(client, stand_in):
    stand_in.errors = [WrongTask("not this one")]

    def steps():
        call = Call(TYPED + "Embed", pb.EmbedRequest(inputs=["a"]), pb.EmbedResponse)
        with pytest.raises(CallFailed, match="not this one"):
            yield from one(call)
        return (yield from one(call))

    assert len((await client.run("_run", steps())).results) == 1


# ---- streams


async def test_a_stream_that_is_closed_is_cancelled(client, stand_in):
    stream = await client.parts(2)
    await client.end(stream)
    async with asyncio.timeout(WAIT_S):
        await stand_in.cancelled.wait()


async def test_a_stream_that_is_dropped_is_cancelled(client, stand_in):
    stream = await client.parts(2)
    cycle = [stream]
    cycle.append(cycle)
    del stream, cycle
    gc.collect()
    async with asyncio.timeout(WAIT_S):
        await stand_in.cancelled.wait()


async def test_a_stream_that_is_left_is_cancelled(client, stand_in):
    await client.leave()
    async with asyncio.timeout(WAIT_S):
        await stand_in.cancelled.wait()


async def test_a_stream_whose_task_is_cancelled_is_cancelled(target, stand_in):
    stand_in.answering.clear()
    async with connected("asyncio", target) as client:
        stream = await client.parts(1)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stand_in.answering.set()
        async with asyncio.timeout(WAIT_S):
            await stand_in.cancelled.wait()


async def test_a_stream_that_another_task_closes_ends(target, stand_in):
    stand_in.answering.clear()
    async with connected("asyncio", target) as client:
        stream = await client.parts(1)
        rest = asyncio.create_task(anext(stream, "the end"))
        await asyncio.sleep(0)
        await stream.aclose()
        assert await rest == "the end"


async def test_an_error_ends_a_stream(client, stand_in):
    stand_in.errors = [WrongTask("it embeds")]
    with pytest.raises(CallFailed, match="it embeds"):
        await client.parts(1)


def test_an_asyncio_client_belongs_to_one_event_loop():
    client = AsyncClient("127.0.0.1:1", retries=False)
    with pytest.raises(Unreachable):
        asyncio.run(client.models())
    with pytest.raises(RuntimeError, match="AsyncClient: found another event loop"):
        asyncio.run(client.models())
