"""The interceptor of every call: tokens, errors as statuses, measured time, and the number of calls in flight.

It knows nothing of models and handles every service on the server, including health and reflection.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import grpc

from server.admission.in_flight import InFlight
from server.auth.access import Access
from server.errors import PermissionDenied, Unauthenticated, drop_tracebacks
from server.rpc.calls.authentication import Authentication
from server.rpc.calls.context import (
    GrpcContext,
    describe_call,
    request_context,
    set_client_of_call,
    start_cancellation,
)
from server.rpc.calls.rates import CallerRates
from server.rpc.calls.request_reader import read_each, read_one, unreadable_as_value
from server.rpc.calls.response_writer import ResponseWriter
from server.rpc.connections import Connections
from server.rpc.services import HEALTH
from server.status import CANCEL_STATUSES, ErrorStatus, code_of, error_status

Behaviour = Callable[[Any, GrpcContext], Any]
ReadRequest = Callable[[AsyncIterable[Any], GrpcContext], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # None: there is no such method

KINDS = {  # (request streams, response streams) → the value of the label grpc_type, and the field of the handler
    (False, False): ("unary", "unary_unary"),
    (False, True): ("server_stream", "unary_stream"),
    (True, False): ("client_stream", "stream_unary"),
    (True, True): ("bidi_stream", "stream_stream"),
}

MAX_METHODS = 256  # whose handlers are kept; a server has some dozens

log = logging.getLogger("server")


class CallListener(Protocol):
    """Receives the start and end of calls. `kind`, `service` and `method` are labels of the grpc_server_* metrics."""

    def call_authenticated(self, client: str) -> None: ...

    def call_started(self, kind: str, service: str, method: str) -> None: ...

    def call_ended(self, kind: str, service: str, method: str, code: str, seconds: float) -> None: ...


class CallInterceptor(grpc.aio.ServerInterceptor):
    """One interceptor for all four kinds of calls."""

    def __init__(
        self,
        listener: CallListener,
        in_flight: InFlight,
        connections: Connections,
        *,
        tracked_paths: frozenset[str],
        slow_client_seconds: float = 0.0,
        rates: CallerRates | None = None,
        authentication: Authentication | None = None,
    ) -> None:
        """Without `authentication` no call needs a token.

        A stopping server waits for calls of `tracked_paths` to finish, and refuses those that could go elsewhere.

        `rates` limits the rate of these calls, too. A stream whose client has read nothing for `slow_client_seconds` is
        aborted; 0: never.
        """
        self._listener = listener
        self._in_flight = in_flight
        self._connections = connections
        self._tracked_paths = tracked_paths
        self._slow_client_seconds = slow_client_seconds
        self._rates = rates or CallerRates(0)
        self._authentication = authentication or Authentication(Access())
        self._wrapped_once = lru_cache(MAX_METHODS)(self._wrapped)  # the handlers of a server's methods stay the same

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        path = str(handler_call_details.method)
        try:
            client = self._authentication.client(handler_call_details)
        except (Unauthenticated, PermissionDenied) as error:
            return self._refusing(await continuation(handler_call_details), path, error)
        if client is not None:
            set_client_of_call(client)  # for further interceptors and the handler, which run in the same task
            self._listener.call_authenticated(client.name)
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.request_streaming:  # a stream can outlive the token that it began with
            return self._wrapped(path, handler, lambda: self._authentication.client(handler_call_details))
        return self._wrapped_once(path, handler)

    def _wrapped(self, path: str, handler: Handler, check: Callable[[], object] | None = None) -> Handler:
        """The handler of a method with all that this interceptor adds to it. `check` is called at each message."""
        assert handler is not None
        kind, field = KINDS[handler.request_streaming, handler.response_streaming]
        inner = getattr(handler, field)
        if check is not None:
            inner = _with_each_message(inner, check)
        read = read_each if handler.request_streaming else read_one
        wrap, make_handler = (
            (self._streaming, grpc.stream_stream_rpc_method_handler)
            if handler.response_streaming
            else (self._unary, grpc.stream_unary_rpc_method_handler)
        )  # to a client, a stream of one request is the same as a unary request
        return make_handler(
            wrap(kind, path, read, inner),
            request_deserializer=unreadable_as_value(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _refusing(self, handler: Handler, path: str, error: Exception) -> Handler:
        """A handler that refuses the call before it reads a message."""

        async def refuse() -> None:
            raise error

        async def behaviour(messages: AsyncIterable[Any], context: GrpcContext) -> None:
            if handler is None:  # there is no such method, and so no label for it
                await _abort(context, error_status(error, path=path))
            else:
                kind, _ = KINDS[handler.request_streaming, handler.response_streaming]
                await self._run(kind, path, context, refuse)

        return grpc.stream_stream_rpc_method_handler(behaviour)

    def _unary(self, kind: str, path: str, read: ReadRequest, inner: Behaviour) -> Behaviour:
        async def behaviour(messages: AsyncIterable[Any], context: GrpcContext) -> Any:
            async def respond() -> Any:
                await self._admit(path, context)
                request = await read(messages, context)
                with self._tracked(path, context), self._calling(path, context):
                    return await inner(request, context)

            return await self._run(kind, path, context, respond)

        return behaviour

    def _streaming(self, kind: str, path: str, read: ReadRequest, inner: Behaviour) -> Behaviour:
        async def behaviour(messages: AsyncIterable[Any], context: GrpcContext) -> None:
            writer = ResponseWriter(context, start_cancellation(), slow_client_seconds=self._slow_client_seconds)

            async def respond() -> None:
                await self._admit(path, context)
                request = await read(messages, context)
                writing = self._connections.writing(context)
                with self._tracked(path, context), self._calling(path, context):
                    # write() instead of yield: the generator is then closed as soon as the client disconnects.
                    async with aclosing(inner(request, context)) as responses:
                        async for response in responses:
                            with writing:
                                await writer.write(response)

            try:
                await self._run(kind, path, context, respond)
            finally:
                writer.close()

        return behaviour

    async def _run(self, kind: str, path: str, context: GrpcContext, respond: Callable[[], Awaitable[Any]]) -> Any:
        """What `respond` returns. An error ends the call with the error's status."""
        try:
            with _MeasuredCall(self._listener, kind, path, context):
                response = await respond()
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            status = error_status(error, path=describe_call(path), left_s=context.time_remaining())
            drop_tracebacks(error)
            self._connections.writing_last(context)
            await _abort(context, status)
            return None  # gRPC raises its own exception now
        self._connections.writing_last(context)
        return response

    async def _admit(self, path: str, context: GrpcContext) -> None:
        """Refuse a call beyond the rate of its caller, or on a connection that is about to be closed.

        Its message has not been read.
        """
        if path in self._tracked_paths:
            self._rates.check(context)
            await self._connections.wait_for_close(context)

    def _tracked(self, path: str, context: GrpcContext) -> AbstractContextManager[None]:
        """Count a call that has to finish, during the `with` block. Raises NotReady if it could go elsewhere."""
        if path not in self._tracked_paths:
            return nullcontext()
        late = self._connections.was_open_at_stop(context)
        return self._in_flight.track_late() if late else self._in_flight.track()

    def _calling(self, path: str, context: GrpcContext) -> AbstractContextManager[None]:
        """Count the call as one of its connection. Watching the health of a server keeps no connection open."""
        return nullcontext() if path.startswith(f"/{HEALTH}/") else self._connections.calling(context)


class _MeasuredCall:
    """Reports the start and the end of a call to a listener. An error in the `with` block is the status of the call."""

    def __init__(self, listener: CallListener, kind: str, path: str, context: GrpcContext) -> None:
        _, service, method = path.split("/")
        self._listener, self._labels, self._path = listener, (kind, service, method), path
        self._context, self._remaining_s = context, context.time_remaining()

    def __enter__(self) -> None:
        self._listener.call_started(*self._labels)
        self._started = time.monotonic()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        now, code = time.monotonic(), self._code(error)
        self._listener.call_ended(*self._labels, code.name, now - self._started)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s: %s after %.6f s", describe_call(self._path), code.name, now - self._started)

    def _code(self, error: BaseException | None) -> grpc.StatusCode:
        if isinstance(error, asyncio.CancelledError):
            context = request_context(self._remaining_s, self._started)
            return CANCEL_STATUSES[context.cancel_reason(time.monotonic())]
        if isinstance(error, grpc.aio.AbortError):
            return self._context.code()
        return code_of(error) if isinstance(error, Exception) else grpc.StatusCode.OK


def _with_each_message(inner: Behaviour, check: Callable[[], object]) -> Behaviour:
    """The handler of a stream of messages, with a check at each of them."""

    async def each(messages: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            check()
            yield message

    return lambda messages, context: inner(each(messages), context)


async def _abort(context: GrpcContext, status: ErrorStatus) -> None:
    """End the call with an error, when the client has read what was sent before.

    gRPC stores its exception in the call, which the traceback refers to, and raises it again after the handler.
    """
    try:
        await context.abort(status.code, status.text, status.trailers)
    except grpc.aio.AbortError as aborted:
        drop_tracebacks(aborted)
