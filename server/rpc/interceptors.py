"""The interceptor of every call: it converts errors to statuses, measures the time and counts calls in flight.

It knows nothing of models and handles every service on the server, including health and reflection.
"""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Protocol, TypeAlias

import grpc

from server.admission.in_flight import InFlight
from server.errors import drop_tracebacks
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
        tracked_paths: frozenset[str],
        *,
        slow_client_seconds: float = 0.0,
    ) -> None:
        """A stopping server waits for calls of `tracked_paths` to finish and refuses new ones.

        A stream whose client has read nothing for `slow_client_seconds` is aborted; 0: never.
        """
        self._listener = listener
        self._in_flight = in_flight
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
        inner: Behaviour = getattr(handler, field)
        wrap = self._streaming if handler.response_streaming else self._unary
        return getattr(grpc, f"{field}_rpc_method_handler")(  # type: ignore[no-any-return]
            wrap(kind, str(handler_call_details.method), inner),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, kind: str, path: str, inner: Behaviour) -> Behaviour:
        async def behaviour(request: Any, context: GrpcContext) -> Any:
            async with self._observed(kind, path, context):
                return await inner(request, context)

        return behaviour

    def _streaming(self, kind: str, path: str, inner: Behaviour) -> Behaviour:
        async def behaviour(request: Any, context: GrpcContext) -> None:
            writer = ResponseWriter(context, cancellation_of_call(), slow_client_seconds=self._slow_client_seconds)
            async with self._observed(kind, path, context):
                if not inspect.isasyncgenfunction(inner):
                    await inner(request, context)
                    return
                # write() instead of yield: the generator is then closed as soon as the client disconnects.
                async with aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        await writer.write(response)

        return behaviour

    @asynccontextmanager
    async def _observed(self, kind: str, path: str, context: GrpcContext) -> AsyncIterator[None]:
        try:
            async with self._measured(kind, path, context):
                yield
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            status = error_status(error, path=path)
            drop_tracebacks(error)
            await _abort(context, status)

    @asynccontextmanager
    async def _measured(self, kind: str, path: str, context: GrpcContext) -> AsyncIterator[None]:
        _, service, method = path.split("/")
        self._listener.call_started(kind, service, method)
        request_context = make_request_context(context)
        started = time.perf_counter()
        code = grpc.StatusCode.OK
        try:
            async with AsyncExitStack() as stack:
                if path in self._tracked_paths:
                    stack.enter_context(self._in_flight.track())
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


async def _abort(context: GrpcContext, status: ErrorStatus) -> None:
    """End the call with an error, when the client has read what was sent before.

    gRPC stores its exception in the call, which the traceback refers to, and raises it again after the handler.
    """
    try:
        await context.abort(status.code, status.text, status.trailers)
    except grpc.aio.AbortError as aborted:
        drop_tracebacks(aborted)
