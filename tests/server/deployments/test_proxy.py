"""The handlers for the gRPC proxy of Ray Serve, in a real gRPC server that replaces functions as the proxy does."""

import json
from contextlib import asynccontextmanager

import grpc
import pytest

from server.client.connection import Connection
from server.deployments import proxy
from server.status import INTERNAL_TEXT

UNARY, STREAM = "/affinity.v1.Affinity/FillMask", "/affinity.v1.Affinity/Generate"
ATTEMPTS = 3


class Proxy:
    """Registers handlers as ray/serve/_private/grpc_util.py does: with functions of its own."""

    def __init__(self, server, fail):
        self._server, self._fail = server, fail
        self.metadata = []

    def add_generic_rpc_handlers(self, handlers):
        service = handlers[0]
        service._method_handlers = {
            path: handler._replace(
                response_serializer=None,
                unary_unary=self._unary,
                unary_stream=self._stream,
                stream_unary=self._unary,
                stream_stream=self._stream,
            )
            for path, handler in service._method_handlers.items()
        }
        self._server.add_generic_rpc_handlers(handlers)

    async def _unary(self, request, context):
        self.metadata.append(dict(context.invocation_metadata()))
        self._fail(context, len(self.metadata))
        return b"" if context.code() else request

    async def _stream(self, request, context):
        yield request
        self._fail(context, 1)
        yield b""


@asynccontextmanager
async def running(fail=lambda context, attempt: None):
    """The proxy, and a channel with the retry policy of the shipped client."""
    server = grpc.aio.server()
    found = Proxy(server, fail)
    proxy.add_services(found)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connection = Connection(server=f"127.0.0.1:{port}")
    try:
        async with grpc.aio.insecure_channel(connection.target, options=connection.options) as channel:
            yield found, channel
    finally:
        await server.stop(None)


def failing(code, details, *, attempts, trailers=()):
    def fail(context, attempt):
        if attempt <= attempts:
            context.set_code(code)
            context.set_details(details)
            context.set_trailing_metadata(trailers)

    return fail


async def test_the_deadline_is_metadata_that_clients_cannot_set():
    async with running() as (found, channel):
        forged = [(proxy.TIME_REMAINING, "7")]
        assert await channel.unary_unary(UNARY)(b"message", timeout=29.5, metadata=forged) == b"message"
        assert await channel.unary_unary(UNARY)(b"message", metadata=forged) == b"message"
    assert 7 < float(found.metadata[0][proxy.TIME_REMAINING]) <= 30
    assert proxy.TIME_REMAINING not in found.metadata[1]


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "draining"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
        (grpc.StatusCode.INTERNAL, "The actor died unexpectedly before finishing this task."),
    ],
)
async def test_the_client_repeats_calls_that_may_succeed(code, details):
    async with running(failing(code, details, attempts=ATTEMPTS)) as (found, channel):
        assert await channel.unary_unary(UNARY)(b"message", timeout=30) == b"message"
    assert len(found.metadata) == ATTEMPTS + 1


@pytest.mark.parametrize(
    ("code", "details"), [(grpc.StatusCode.INVALID_ARGUMENT, "top_k"), (grpc.StatusCode.INTERNAL, INTERNAL_TEXT)]
)
async def test_other_errors_reach_the_client_with_their_trailers(code, details):
    fail = failing(code, details, attempts=ATTEMPTS, trailers=[("retry-after-ms", "5"), ("a-bin", b"\xff")])
    async with running(fail) as (found, channel):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary(UNARY)(b"message", timeout=30)
    assert (failed.value.code(), failed.value.details()) == (code, details)
    assert dict(failed.value.trailing_metadata()) == {"retry-after-ms": "5", "a-bin": b"\xff"}
    assert len(found.metadata) == 1


async def test_the_response_that_comes_with_an_error_is_left_out_of_a_stream():
    async with running(failing(grpc.StatusCode.NOT_FOUND, "model", attempts=1)) as (_, channel):
        call = channel.unary_stream(STREAM)(b"message", timeout=30)
        assert await call.read() == b"message"
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call.read()
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND


async def test_every_method_of_the_server_is_there():
    async with running() as (_, channel):
        for path in (UNARY, "/inference.GRPCInferenceService/ModelInfer", "/grpc.health.v1.Health/Check"):
            assert await channel.unary_unary(path)(json.dumps(path).encode(), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            [_ async for _ in channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=30)]
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED  # gRPC's clients then take the server as healthy
