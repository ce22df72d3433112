"""A gRPC server without a network: it runs the same services and interceptors for calls that another process received.

The process that received a call has its metadata and its messages as bytes. It knows nothing of which process that is.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeAlias

import grpc

from server.status import ErrorStatus

Metadata = tuple[tuple[str, str | bytes], ...]
Reply = bytes | ErrorStatus  # a message, or the status with which the call ends
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"  # None: there is no such method

EXPIRED = ErrorStatus(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline of the call has expired", ())


@dataclass(frozen=True)
class IncomingCall:
    """A call as the process that received it describes it."""

    path: str
    metadata: Metadata = ()
    peer: str = ""  # the address of the client, as gRPC spells it
    remaining_s: float | None = None  # until the deadline; None: it has none


@dataclass(frozen=True)
class _CallDetails:
    """What an interceptor sees of a call (grpc.HandlerCallDetails)."""

    method: str
    invocation_metadata: Metadata


class LocalServer:
    """Takes services as a grpc.aio.Server does. The interceptors are called in the order in which they are given."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._services: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        self._services += generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Generated code registers its handlers in this way, too, for servers that look them up faster."""

    async def unary(self, call: IncomingCall, message: bytes) -> Reply:
        """The only response to a call, or its error."""
        return [reply async for reply in self.stream(call, _one(message))][-1]

    async def stream(self, call: IncomingCall, messages: AsyncIterable[bytes]) -> AsyncGenerator[Reply, None]:
        """The responses to a call. An error is the last reply. To close the generator cancels the call."""
        replies: asyncio.Queue[Reply | None] = asyncio.Queue(1)
        run = asyncio.create_task(self._run(call, messages, replies))
        try:
            while (reply := await replies.get()) is not None:
                yield reply
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)

    async def _run(
        self, call: IncomingCall, messages: AsyncIterable[bytes], replies: "asyncio.Queue[Reply | None]"
    ) -> None:
        """Put the responses in the queue, and None at the end."""
        context = LocalContext(call, replies)
        try:
            async with asyncio.timeout(call.remaining_s):
                await self._handle(call, messages, context)
        except grpc.aio.AbortError:
            pass
        except TimeoutError:
            context.status = EXPIRED
        finally:
            context.finish()
        if context.status is not None:
            await replies.put(context.status)
        await replies.put(None)

    async def _handle(self, call: IncomingCall, messages: AsyncIterable[bytes], context: "LocalContext") -> None:
        handler = await self._intercepted(_CallDetails(call.path, call.metadata), self._interceptors)
        if handler is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"found no method {call.path}")
            return
        assert handler.request_streaming, "an interceptor makes every handler one of a stream; this is a bug"
        behaviour: Any = handler.stream_stream if handler.response_streaming else handler.stream_unary
        context.serialize = handler.response_serializer or context.serialize
        context.requests = _parsed(messages, handler.request_deserializer or bytes)
        if handler.response_streaming:
            await behaviour(context.requests, context)  # it writes to the context
        elif (response := await behaviour(context.requests, context)) is not None:
            await context.write(response)

    async def _intercepted(self, details: Any, interceptors: Sequence[grpc.aio.ServerInterceptor]) -> Handler:
        """The handler of a call, wrapped by these interceptors."""
        if not interceptors:
            found = (service.service(details) for service in self._services)
            return next((handler for handler in found if handler is not None), None)

        async def inner(details: Any) -> Handler:
            return await self._intercepted(details, interceptors[1:])

        return await interceptors[0].intercept_service(inner, details)


class LocalContext:
    """The part of grpc.aio.ServicerContext that services and interceptors use, for one call."""

    def __init__(self, call: IncomingCall, replies: "asyncio.Queue[Reply | None]") -> None:
        self._call, self._replies = call, replies
        self._deadline = None if call.remaining_s is None else monotonic() + call.remaining_s
        self._callbacks: list[Callable[[Any], None]] = []
        self.requests: AsyncIterator[Any] = _parsed(_none(), bytes)
        self.serialize: Callable[[Any], bytes] = bytes
        self.status: ErrorStatus | None = None

    def invocation_metadata(self) -> Metadata:
        return self._call.metadata

    def peer(self) -> str:
        return self._call.peer

    def time_remaining(self) -> float | None:
        """Seconds until the deadline; None if the call has none."""
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    async def read(self) -> Any:
        """The next message, or EOF."""
        return await anext(self.requests, grpc.aio.EOF)

    async def write(self, response: Any) -> None:
        """Wait until the response before this one was taken."""
        await self._replies.put(self.serialize(response))

    async def send_initial_metadata(self, metadata: object) -> None:
        """There is none on the way back."""

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self.status = ErrorStatus(code, details, tuple(trailing_metadata))
        raise grpc.aio.AbortError

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK if self.status is None else self.status.code

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def finish(self) -> None:
        """Call those who wait for the end of the call."""
        for callback in self._callbacks:
            callback(self)


async def _parsed(messages: AsyncIterable[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    async for message in messages:
        yield parse(message)


async def _one(message: bytes) -> AsyncIterator[bytes]:
    yield message


async def _none() -> AsyncIterator[bytes]:
    return
    yield
