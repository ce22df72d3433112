"""The asyncio client, of the same shape as the synchronous one. It runs the same steps and awaits the responses."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
from google.protobuf.message import Message

from server.client.calls import IN_FLIGHT, Call, Steps
from server.client.connection import DEFAULT_SERVER, Connection, Tls
from server.client.errors import CallFailed, call_failed
from server.client.methods import OnProgress, Progress, documented
from server.client.tasks import Tasks

P = ParamSpec("P")
ResultT = TypeVar("ResultT")
ResponseT = TypeVar("ResponseT", bound=Message)


class AsyncStream(AsyncIterator[ResponseT]):
    """Iterates over the responses to a call, which starts with the first of them.

    The call is cancelled when the iterator is closed or dropped, as it is when a loop over it is left by `break`, and
    when the task that waits for a response is cancelled.
    """

    def __init__(self, client: "AsyncClient", steps: Steps[Call[ResponseT]]) -> None:
        self._client, self._steps = client, steps
        self._loop: asyncio.AbstractEventLoop | None = None
        self._responses: Any = None  # gRPC's call
        self._closed = False

    async def __anext__(self) -> ResponseT:
        if self._closed:
            raise StopAsyncIteration
        try:
            if self._responses is None:
                self._loop = asyncio.get_running_loop()
                self._responses = self._client._begin(await self._client._run(self._steps))
            response = await self._responses.read()
        except grpc.RpcError as error:
            self._closed = True
            raise call_failed(error, server=self._client.server) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):  # closed by another task
                raise StopAsyncIteration from None
            self._cancel()
            raise
        except BaseException:
            self._cancel()
            raise
        if response is grpc.aio.EOF:
            self._closed = True
            raise StopAsyncIteration
        return response  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Cancel the call. The iterator ends."""
        self._cancel()

    async def __aenter__(self) -> "AsyncStream[ResponseT]":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cancel()

    def __del__(self) -> None:
        if self._responses is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._responses.cancel)  # the garbage collector runs in any thread

    def _cancel(self) -> None:
        self._closed = True
        if self._responses is not None:
            self._responses.cancel()


def _method(
    steps: Callable[Concatenate[Tasks, P], Steps[ResultT]],
) -> Callable[Concatenate["AsyncClient", P], Coroutine[Any, Any, ResultT]]:
    """The method that runs these steps."""

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return await self._run(steps(self._tasks, *args, **kwargs))

    return documented(method, steps, lambda result: result)


def _stream(
    steps: Callable[Concatenate[Tasks, P], Steps[Call[ResponseT]]],
) -> Callable[Concatenate["AsyncClient", P], "AsyncStream[ResponseT]"]:
    """The method that returns the responses to the call of these steps."""

    def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> "AsyncStream[ResponseT]":
        return AsyncStream(self, steps(self._tasks, *args, **kwargs))

    return documented(method, steps, lambda _: AsyncStream[Any])


class AsyncClient:
    """A connection to one server, or to several replicas of it, for one event loop.

    The arguments are those of Client. `async with` closes the connection.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        timeout_s: float = 60.0,
        tls: Tls | None = None,
        token: str | None = None,
        retries: bool = True,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.server = server
        self._connection = Connection(server, timeout_s=timeout_s, tls=tls, token=token, retries=retries)
        self._target, self._options = self._connection.target, self._connection.options
        self._credentials = None if tls is None else tls.credentials()
        self._call_options = self._connection.call_options
        self._on_progress = on_progress
        self._tasks = Tasks()
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    fill_mask = _method(Tasks.fill_mask)
    generate = _stream(Tasks.generate)
    classify_image = _method(Tasks.classify_image)
    classify_text = _method(Tasks.classify_text)
    embed = _method(Tasks.embed)
    embed_array = _method(Tasks.embed_array)
    count_tokens = _method(Tasks.count_tokens)
    info = _method(Tasks.info)
    models = _method(Tasks.models)
    choose = _method(Tasks.choose)
    candidates = _method(Tasks.candidates)
    health = _method(Tasks.health)

    async def close(self) -> None:
        """Close the connection. Calls that are running are cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[ResultT]) -> ResultT:
        """The result of the steps. Raises CallFailed."""
        try:
            calls = next(steps)
            while True:
                try:
                    responses = await self._send(calls)
                except CallFailed as error:
                    calls = steps.throw(error)  # which raises it again, unless the steps have an answer to it
                else:
                    calls = steps.send(responses)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    async def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The responses to the calls. Up to IN_FLIGHT of them run at the same time."""
        waiting, running, responses = deque(calls), deque[tuple[Call[Any], Any]](), []
        progress = Progress(calls, self._on_progress)
        try:
            while waiting or running:
                while waiting and len(running) < IN_FLIGHT:
                    call = waiting.popleft()
                    running.append((call, self._unary(call)(call.request, **self._call_options)))
                call, response = running[0]
                with self._errors(call):
                    responses.append(await response)
                running.popleft()
                progress.finished(call)
        finally:
            for _, response in running:
                response.cancel()
        return responses

    def _open(self) -> grpc.aio.Channel:
        """The channel, made by the first call: it belongs to the event loop that is running then."""
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError("AsyncClient: found another event loop than that of its first call, expected the same")
        if self._channel is None:
            self._loop = loop
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._target, options=self._options)
            else:
                self._channel = grpc.aio.secure_channel(self._target, self._credentials, options=self._options)
        return self._channel

    def _unary(self, call: Call[Any]) -> Any:
        return self._open().unary_unary(call.path, *call.serializers)

    def _begin(self, call: Call[Any]) -> Any:
        return self._open().unary_stream(call.path, *call.serializers)(call.request, **self._call_options)

    @contextmanager
    def _errors(self, call: Call[Any]) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise call_failed(error, server=self.server, first=call.first) from error
