"""ModelStreamInfer: many requests on one stream."""

import asyncio

import pytest

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from server.rpc.open_inference.stream import InferStream


class Source:
    """A stream of the items that a test puts into its queue; None ends it."""

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


def infer_stream(sources, *, streaming=()):
    """A stream on which the responses to a request are the items of the source with its id."""

    async def respond(request):
        async for item in sources[request.id].stream():
            response = ModelInferResponse(id=request.id, model_name=item)
            yield ModelStreamInferResponse(infer_response=response)

    return InferStream(respond, lambda request: request.id in streaming)


async def requests(*ids):
    for each in ids:
        yield ModelInferRequest(id=each)


def label(response):
    return response.infer_response.id + response.infer_response.model_name


async def test_single_responses_keep_the_order_of_the_requests():
    sources = {"1": Source(), "2": Source()}
    responses = infer_stream(sources).run(requests("1", "2"))
    sources["2"].queue.put_nowait("x")
    sources["2"].queue.put_nowait(None)
    pending = asyncio.create_task(anext(responses))
    sources["1"].queue.put_nowait("y")
    sources["1"].queue.put_nowait(None)
    assert [label(await pending), *[label(response) async for response in responses]] == ["1y", "2x"]


async def test_streaming_responses_do_not_wait_for_other_requests():
    sources = {"1": Source(), "2": Source()}
    responses = infer_stream(sources, streaming=("2",)).run(requests("1", "2"))
    for item in ("x", "y", None):
        sources["2"].queue.put_nowait(item)
    assert [label(await anext(responses)), label(await anext(responses))] == ["2x", "2y"]
    sources["1"].queue.put_nowait("z")
    sources["1"].queue.put_nowait(None)
    assert [label(response) async for response in responses] == ["1z"]


async def test_a_disconnected_client_stops_its_requests():
    sources = {"1": Source(), "2": Source()}
    responses = infer_stream(sources, streaming=("1", "2")).run(requests("1", "2"))
    sources["1"].queue.put_nowait("x")
    await anext(responses)
    await responses.aclose()
    assert sources["1"].closed
    assert sources["2"].closed


async def test_an_exception_ends_the_stream():
    sources = {"1": Source(), "2": Source()}
    responses = infer_stream(sources, streaming=("1", "2")).run(requests("1", "2"))
    sources["2"].queue.put_nowait(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await anext(responses)
    assert sources["1"].closed
