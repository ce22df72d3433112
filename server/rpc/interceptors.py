"""The interceptor of every call: it converts errors to statuses, measures the time and counts calls in flight.

It knows nothing of models and handles every service on the server, including health and reflection.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any, Protocol, TypeAlias

import grpc

from server.admission.in_flight import InFlight
from server.admission.queue import Cancellation
from server.errors import InvalidRequest, drop_tracebacks
from server.rpc.connections import Connections
from server.rpc.context import GrpcContext, cancellation_of_call, make_request_context
from server.rpc.response_writer import ResponseWriter
from server.status import CANCEL_STATUSES, ErrorStatus, code_of, error_status

Behaviour = Callable[[Any, GrpcContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # None: there is no such method

KINDS = {  # (request streams, response streams) → the value of the label grpc_type, and the field of the handler
    (False, False): ("unary", "unary_unary"),
    (False, True): ("server_stream", "unary_stream"),
    (True, False): ("client_stream", "stream_unary"),
    (True, True): ("bidi_stream", "stream_stream"),
}


class CallListener(Protocol):
    """Receives the start and end of calls. `kind`, `service` and `method` are labels of the grpc_server_* metrics."""

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
    ) -> None:
        """A stopping server waits for calls of `tracked_paths` to finish, and refuses those that could go elsewhere.

        A stream whose client has read nothing for `slow_client_seconds` is aborted; 0: never.
        """
        self._listener = listener
        self._in_flight = in_flight
        self._connections = connections
        self._tracked_paths = tracked_paths
        self._slow_client_seconds = slow_client_seconds

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind, field = KINDS[handler.request_streaming, handler.response_streaming]
        inner = _refusing_unreadable(getattr(handler, field), streams=handler.request_streaming)
        wrap = self._streaming if handler.response_streaming else self._unary
        return getattr(grpc, f"{field}_rpc_method_handler")(  # type: ignore[no-any-return]
            wrap(kind, str(handler_call_details.method), inner),
            request_deserializer=_unreadable_as_value(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )

    def _unary(self, kind: str, path: str, inner: Behaviour) -> Behaviour:
        async def behaviour(request: Any, context: GrpcContext) -> Any:
            return await self._run(kind, path, context, lambda: inner(request, context))

        return behaviour

    def _streaming(self, kind: str, path: str, inner: Behaviour) -> Behaviour:
        async def respond(request: Any, context: GrpcContext, cancellation: Cancellation) -> None:
            writer = ResponseWriter(context, cancellation, slow_client_seconds=self._slow_client_seconds)
            # write() instead of yield: the generator is then closed as soon as the client disconnects.
            async with aclosing(inner(request, context)) as responses:
                async for response in responses:
                    with self._connections.writing(context):
                        await writer.write(response)

        async def behaviour(request: Any, context: GrpcContext) -> None:
            cancellation = cancellation_of_call()
            await self._run(kind, path, context, lambda: respond(request, context, cancellation))

        return behaviour

    async def _run(self, kind: str, path: str, context: GrpcContext, handle: Callable[[], Awaitable[Any]]) -> Any:
        """What the handler returns. An error ends the call with the error's status."""
        try:
            with self._measured(kind, path, context), self._tracked(path, context):
                response = await handle()
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            status = error_status(error, path=path)
            drop_tracebacks(error)
            self._connections.writing_last(context)
            await _abort(context, status)
            return None  # gRPC raises its own exception now
        self._connections.writing_last(context)
        return response

    @contextmanager
    def _tracked(self, path: str, context: GrpcContext) -> Iterator[None]:
        with ExitStack() as stack:
            if path in self._tracked_paths:
                late = self._connections.was_open_at_stop(context)
                stack.enter_context(self._in_flight.track_late() if late else self._in_flight.track())
            yield

    @contextmanager
    def _measured(self, kind: str, path: str, context: GrpcContext) -> Iterator[None]:
        _, service, method = path.split("/")
        self._listener.call_started(kind, service, method)
        request_context = make_request_context(context)
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            yield
        except asyncio.CancelledError:
            code = CANCEL_STATUSES[request_context.cancel_reason(time.monotonic())]
            raise
        except grpc.aio.AbortError:
            code = context.code()
            raise
        except Exception as error:
            code = code_of(error)
            raise
        finally:
            self._listener.call_ended(kind, service, method, code.name, time.perf_counter() - started)


class Unreadable:
    """Takes the place of a message that cannot be parsed: gRPC itself would end the call with UNKNOWN, uncounted."""


def _unreadable_as_value(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """The deserializer, which returns Unreadable instead of raising an error."""
    if deserialize is None:
        return None

    def parse(message: bytes) -> Any:
        try:
            return deserialize(message)
        except Exception:  # protobuf's DecodeError; other libraries have their own
            return Unreadable()

    return parse


def _refusing_unreadable(inner: Behaviour, *, streams: bool) -> Behaviour:
    """The handler, which refuses a call with a message that cannot be parsed."""

    def readable(message: Any) -> Any:
        if isinstance(message, Unreadable):
            expected = "a message of the method's type; strings have to be UTF-8"
            raise InvalidRequest("the message of the call", "bytes that cannot be parsed", expected)
        return message

    async def each(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            yield readable(message)

    if streams:
        return lambda messages, context: inner(each(messages), context)
    return lambda message, context: inner(readable(message), context)


async def _abort(context: GrpcContext, status: ErrorStatus) -> None:
    """End the call with an error, when the client has read what was sent before.

    gRPC stores its exception in the call, which the traceback refers to, and raises it again after the handler.
    """
    try:
        await context.abort(status.code, status.text, status.trailers)
    except grpc.aio.AbortError as aborted:
        drop_tracebacks(aborted)
