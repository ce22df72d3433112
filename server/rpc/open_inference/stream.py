"""One ModelStreamInfer call: many requests in, the responses to all of them out.

Requests run concurrently. Single responses keep the order of their requests. Responses of streaming requests are
interleaved with them; clients tell them apart by `id`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing

from protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse

Responses = AsyncGenerator[ModelStreamInferResponse, None]

MAX_CONCURRENT = 256  # requests of one stream; the next one is read when one of them has finished


class InferStream:
    """Runs the requests of a stream as tasks that put their responses into one queue."""

    def __init__(
        self,
        respond: Callable[[ModelInferRequest], Responses],
        is_streaming: Callable[[ModelInferRequest], bool],
    ) -> None:
        """`respond` yields a response for an error that concerns one request. An exception ends the whole stream."""
        self._respond = respond
        self._is_streaming = is_streaming
        self._responses: asyncio.Queue[ModelStreamInferResponse | BaseException | None] = asyncio.Queue(MAX_CONCURRENT)
        self._running: set[asyncio.Task[None]] = set()
        self._semaphore = asyncio.Semaphore(MAX_CONCURRENT)

    async def run(self, requests: AsyncIterable[ModelInferRequest]) -> Responses:
        """Yield responses until the client has closed its side and every request has its responses."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (response := await self._responses.get()) is not None:
                if isinstance(response, BaseException):
                    raise response
                yield response
        finally:
            for task in (reader, *self._running):
                task.cancel()
            await asyncio.gather(reader, *self._running, return_exceptions=True)

    async def _read(self, requests: AsyncIterable[ModelInferRequest]) -> None:
        previous: asyncio.Task[None] | None = None
        try:
            async for request in requests:
                await self._semaphore.acquire()
                in_order = not self._is_streaming(request)
                task = asyncio.create_task(self._run_request(request, previous if in_order else None))
                previous = task if in_order else previous
                self._running.add(task)
                task.add_done_callback(self._done)
            await asyncio.gather(*self._running)
            await self._responses.put(None)
        except Exception as error:
            await self._responses.put(error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._semaphore.release()

    async def _run_request(self, request: ModelInferRequest, after: "asyncio.Task[None] | None") -> None:
        try:
            async with aclosing(self._respond(request)) as responses:
                async for response in responses:
                    if after is not None:
                        await asyncio.wait([after])
                    await self._responses.put(response)
        except Exception as error:
            await self._responses.put(error)
