"""ModelStreamInfer: many requests on one stream."""

import asyncio

import pytest

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from server.rpc.open_inference.stream import InferStream


class Tap:
    """A stream that gives what it is told to, when it is told to."""

    def __init__(self):
        self.queue = asyncio.Queue()
        self.closed = False

    async def stream(self):
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


def conversation(taps, *, in_pieces=()):
    """A conversation where the answers to a request are what comes out of the tap of its id."""

    async def answers(request):
        async for item in taps[request.id].stream():
            whose = ModelInferResponse(id=request.id, model_name=item)
            yield ModelStreamInferResponse(infer_response=whose)

    return InferStream(answers, lambda request: request.id in in_pieces)


async def requests(*ids):
    for each in ids:
        yield ModelInferRequest(id=each)


def spelled(answer):
    return answer.infer_response.id + answer.infer_response.model_name


async def test_single_answers_keep_the_order_of_the_requests():
    taps = {"1": Tap(), "2": Tap()}
    held = conversation(taps).hold(requests("1", "2"))
    taps["2"].queue.put_nowait("x")
    taps["2"].queue.put_nowait(None)
    pending = asyncio.create_task(anext(held))
    taps["1"].queue.put_nowait("y")
    taps["1"].queue.put_nowait(None)
    assert [spelled(await pending), *[spelled(answer) async for answer in held]] == ["1y", "2x"]


async def test_pieces_wait_for_nobody():
    taps = {"1": Tap(), "2": Tap()}
    held = conversation(taps, in_pieces=("2",)).hold(requests("1", "2"))
    for item in ("x", "y", None):
        taps["2"].queue.put_nowait(item)
    assert [spelled(await anext(held)), spelled(await anext(held))] == ["2x", "2y"]
    taps["1"].queue.put_nowait("z")
    taps["1"].queue.put_nowait(None)
    assert [spelled(answer) async for answer in held] == ["1z"]


async def test_a_client_that_leaves_stops_its_requests():
    taps = {"1": Tap(), "2": Tap()}
    held = conversation(taps, in_pieces=("1", "2")).hold(requests("1", "2"))
    taps["1"].queue.put_nowait("x")
    await anext(held)
    await held.aclose()
    assert taps["1"].closed
    assert taps["2"].closed


async def test_what_an_answer_raises_ends_the_conversation():
    taps = {"1": Tap(), "2": Tap()}
    held = conversation(taps, in_pieces=("1", "2")).hold(requests("1", "2"))
    taps["2"].queue.put_nowait(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await anext(held)
    assert taps["1"].closed
