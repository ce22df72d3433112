"""The synchronous client, which threads may share. It runs the steps of the tasks and waits for the responses."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
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


class Stream(Iterator[ResponseT]):
    """Iterates over the responses to a call, which starts with the first `next`.

    The call is cancelled when the iterator is closed or dropped, as it is when a loop over it is left by `break`.
    """

    def __init__(self, client: "Client", steps: Steps[Call[ResponseT]]) -> None:
        self._client, self._steps = client, steps
        self._responses: Any = None  # gRPC's call
        self._closed = False

    def __next__(self) -> ResponseT:
        if self._closed:
            raise StopIteration
        try:
            if self._responses is None:
                self._responses = self._client._begin(self._client._run(self._steps))
            return next(self._responses)  # type: ignore[no-any-return]
        except grpc.RpcError as error:
            if self._closed:  # by another thread
                raise StopIteration from None
            self._closed = True
            raise call_failed(error, server=self._client.server) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancel the call. The iterator ends."""
        self._closed = True
        if self._responses is not None:
            self._responses.cancel()

    def __enter__(self) -> "Stream[ResponseT]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _method(
    steps: Callable[Concatenate[Tasks, P], Steps[ResultT]],
) -> Callable[Concatenate["Client", P], ResultT]:
    """The method that runs these steps."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
        return self._run(steps(self._tasks, *args, **kwargs))

    return documented(method, steps, lambda result: result)


def _stream(
    steps: Callable[Concatenate[Tasks, P], Steps[Call[ResponseT]]],
) -> Callable[Concatenate["Client", P], "Stream[ResponseT]"]:
    """The method that returns the responses to the call of these steps."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> "Stream[ResponseT]":
        return Stream(self, steps(self._tasks, *args, **kwargs))

    return documented(method, steps, lambda _: Stream[Any])


class Client:
    """A connection to one server, or to several replicas of it.

    `server` is an address, `dns:///NAME:PORT` for all addresses of a name, or several addresses separated by commas;
    calls go to the addresses in turn. Each call ends `timeout_s` after its start at the latest. `token` is sent with
    each call; None takes it from the environment variable AFFINITY_TOKEN. Calls that a server refuses because it is
    not ready or overloaded are sent again, unless `retries` is false. `on_progress` is called after each part of many
    inputs, with the number of inputs that are done and of all.

    Raises ValueError for an argument that is invalid, and OSError if a file of `tls` cannot be read. Methods raise
    CallFailed.
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
        connection = Connection(server, timeout_s=timeout_s, tls=tls, token=token, retries=retries)
        self.server = server
        self._call_options = connection.call_options
        self._on_progress = on_progress
        self._tasks = Tasks()
        if tls is None:
            self._channel = grpc.insecure_channel(connection.target, options=connection.options)
        else:
            self._channel = grpc.secure_channel(connection.target, tls.credentials(), options=connection.options)

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

    def close(self) -> None:
        """Close the connection. Calls that are running are cancelled."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[ResultT]) -> ResultT:
        """The result of the steps. Raises CallFailed."""
        try:
            calls = next(steps)
            while True:
                try:
                    responses = self._send(calls)
                except CallFailed as error:
                    calls = steps.throw(error)  # which raises it again, unless the steps have an answer to it
                else:
                    calls = steps.send(responses)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]

    def _send(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """The responses to the calls. Up to IN_FLIGHT of them run at the same time."""
        if len(calls) == 1:
            [call] = calls
            with self._errors(call):
                return [self._unary(call)(call.request, **self._call_options)]
        waiting, running, responses = deque(calls), deque[tuple[Call[Any], Any]](), []
        progress = Progress(calls, self._on_progress)
        try:
            while waiting or running:
                while waiting and len(running) < IN_FLIGHT:
                    call = waiting.popleft()
                    running.append((call, self._unary(call).future(call.request, **self._call_options)))
                call, response = running[0]
                with self._errors(call):
                    responses.append(response.result())
                running.popleft()
                progress.finished(call)
        finally:
            for _, response in running:
                response.cancel()
        return responses

    def _unary(self, call: Call[Any]) -> Any:
        return self._channel.unary_unary(call.path, *call.serializers)

    def _begin(self, call: Call[Any]) -> Any:
        return self._channel.unary_stream(call.path, *call.serializers)(call.request, **self._call_options)

    @contextmanager
    def _errors(self, call: Call[Any]) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise call_failed(error, server=self.server, first=call.first) from error
