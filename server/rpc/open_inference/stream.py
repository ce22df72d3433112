"""One ModelStreamInfer call: many requests in, the answers of all of them out.

Requests run side by side. Answers of a request that has only one come in the order of the requests; those that come in
pieces mix with them (the `id` tells whose they are).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing

from protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse

Answers = AsyncGenerator[ModelStreamInferResponse, None]

MAX_CONCURRENT = 256  # requests of one stream; the next is read when one of them is done


class InferStream:
    """Runs the requests of a stream as tasks that put their answers into one queue."""

    def __init__(
        self,
        answers: Callable[[ModelInferRequest], Answers],
        in_pieces: Callable[[ModelInferRequest], bool],
    ) -> None:
        """`answers` of a request that fails is an answer; what it raises ends the whole stream."""
        self._answers = answers
        self._in_pieces = in_pieces
        self._arrived: asyncio.Queue[ModelStreamInferResponse | BaseException | None] = asyncio.Queue(MAX_CONCURRENT)
        self._running: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_CONCURRENT)

    async def hold(self, requests: AsyncIterable[ModelInferRequest]) -> Answers:
        """The answers, until the client has no more requests and all of them are answered."""
        reader = asyncio.create_task(self._read(requests))
        try:
            while (answer := await self._arrived.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            for task in (reader, *self._running):
                task.cancel()
            await asyncio.gather(reader, *self._running, return_exceptions=True)

    async def _read(self, requests: AsyncIterable[ModelInferRequest]) -> None:
        previous: asyncio.Task[None] | None = None
        try:
            async for request in requests:
                await self._room.acquire()
                in_order = not self._in_pieces(request)
                task = asyncio.create_task(self._answer(request, previous if in_order else None))
                previous = task if in_order else previous
                self._running.add(task)
                task.add_done_callback(self._done)
            await asyncio.gather(*self._running)
            await self._arrived.put(None)
        except Exception as error:
            await self._arrived.put(error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._room.release()

    async def _answer(self, request: ModelInferRequest, after: "asyncio.Task[None] | None") -> None:
        try:
            async with aclosing(self._answers(request)) as answers:
                async for answer in answers:
                    if after is not None:
                        await asyncio.wait([after])
                    await self._arrived.put(answer)
        except Exception as error:
            await self._arrived.put(error)
