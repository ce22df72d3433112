"""The services as the gRPC proxy of Ray Serve registers them, with what the proxy lacks.

The proxy replaces the function of every handler by its own, which sends the call to a replica. These handlers wrap that
function (ray/serve/_private/grpc_util.py):

- The deadline of a call reaches the replica, as metadata.
- A call that fails ends without a message. The proxy sends an empty message before the status, after which gRPC does
  not repeat a call, whatever the retry policy of the client.
- A call whose replica ended is UNAVAILABLE, which clients repeat, instead of INTERNAL.

Messages stay bytes in the proxy, so it spends no time on them, and the replicas report those that cannot be parsed.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from server.deployments.routing import METHODS
from server.rpc.open_inference.servicer import STREAM, UNARY
from server.rpc.services import HEALTH, OPEN_INFERENCE, TYPED
from server.status import INTERNAL_TEXT

TIME_REMAINING = "affinity-time-remaining"  # metadata: seconds until the deadline of the call
ENDED = "a replica ended during the call; retry it"
OK, INTERNAL = grpc.StatusCode.OK.value[0], grpc.StatusCode.INTERNAL.value[0]

Unary = Callable[[Any, Any], Awaitable[bytes]]
Streaming = Callable[[Any, Any], AsyncIterator[bytes]]


def add_services(server: Any) -> None:
    """Register all services: only as generic handlers, which the proxies of all versions of Ray Serve take."""
    services = {
        TYPED: {method.name: (False, method.server_streaming) for method in METHODS.values()},
        OPEN_INFERENCE: {**dict.fromkeys(UNARY, (False, False)), STREAM: (True, True)},
        HEALTH: {"Check": (False, False)},
    }
    for service, methods in services.items():
        handlers: dict[str, Any] = {name: _handler(*streams) for name, streams in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


async def _replaced(request: Any, context: Any) -> bytes:
    raise AssertionError("the proxy of Ray Serve replaces this function; this is a bug")


_GrpcHandler: Any = type(grpc.unary_unary_rpc_method_handler(_replaced))


class WrappedHandler(_GrpcHandler):  # type: ignore[misc]  # a named tuple of grpc
    """A handler that wraps the functions by which the proxy replaces its own."""

    def _replace(self, **fields: Any) -> "WrappedHandler":
        for name in ("unary_unary", "stream_unary"):
            fields[name] = wrapped(fields[name])
        for name in ("unary_stream", "stream_stream"):
            fields[name] = wrapped_stream(fields[name])
        return super()._replace(**fields)  # type: ignore[no-any-return]


def _handler(request_streaming: bool, response_streaming: bool) -> WrappedHandler:
    return WrappedHandler(request_streaming, response_streaming, None, None, _replaced, None, None, None)


def wrapped(inner: Unary) -> Unary:
    """The proxy's function for a call with one response."""

    async def behaviour(request: Any, context: Any) -> bytes:
        response = await inner(request, ProxyContext(context))
        await _end(context)
        return response

    return behaviour


def wrapped_stream(inner: Streaming) -> Streaming:
    """The proxy's function for a call with a stream of responses. The one that comes with an error is left out."""

    async def behaviour(request: Any, context: Any) -> AsyncGenerator[bytes, None]:
        async for response in inner(request, ProxyContext(context)):
            await _end(context)
            yield response
        await _end(context)

    return behaviour


class ProxyContext:
    """The context of a call, whose metadata has the time that remains."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        found = self._context.invocation_metadata() or ()
        metadata = tuple((key, value) for key, value in found if key != TIME_REMAINING)
        remaining_s = self._context.time_remaining()
        return metadata if remaining_s is None else (*metadata, (TIME_REMAINING, f"{remaining_s:.3f}"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


async def _end(context: Any) -> None:
    """End a call that has failed."""
    code, details = _number(context.code()), context.details()
    if code == INTERNAL and details != INTERNAL_TEXT:  # not an error of a replica, but of Ray Serve: one ended
        code, details = grpc.StatusCode.UNAVAILABLE.value[0], ENDED
    if code != OK:
        await context.abort(code, details, tuple(context.trailing_metadata() or ()))


def _number(code: Any) -> int:
    """The number of a status code. gRPC has None or 0 if none was set."""
    return code.value[0] if isinstance(code, grpc.StatusCode) else code or OK
