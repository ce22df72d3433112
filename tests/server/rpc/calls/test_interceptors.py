"""The interceptor on a real gRPC server, with methods that fail in every way."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from server import errors
from server.admission.in_flight import InFlight
from server.rpc.calls.interceptors import CallInterceptor
from server.rpc.connections import Connections
from server.status import INTERNAL_TEXT, STATUS

WRONG = {
    errors.InvalidRequest("top_k", "0", "1 or more"): "INVALID_ARGUMENT",
    errors.ModelNotFound("no such model"): "NOT_FOUND",
    errors.WrongTask("it generates"): "FAILED_PRECONDITION",
    errors.NotReady("loading"): "UNAVAILABLE",
    errors.DeadlineExceeded("too late"): "DEADLINE_EXCEEDED",
    errors.Overloaded("full", retry_after_s=1.5): "RESOURCE_EXHAUSTED",
    errors.BadArtifact("broken"): "FAILED_PRECONDITION",
    errors.NotEnoughMemory("15 slots would fit"): "FAILED_PRECONDITION",
}


class Listener:
    """Records the calls that it is notified of."""

    def __init__(self):
        self.started = []
        self.ended = asyncio.Queue()

    def call_started(self, kind, service, method):
        self.started.append((kind, service, method))

    def call_ended(self, kind, service, method, code, seconds):
        assert seconds >= 0
        self.ended.put_nowait((kind, method, code))


class Served:
    """A server with the methods Unary and Stream of a service s, both implemented by `behave`."""

    def __init__(self, channel, listener, in_flight):
        self.listener, self.in_flight = listener, in_flight
        self.unary = channel.unary_unary("/s/Unary")
        self.stream = channel.unary_stream("/s/Stream")


@asynccontextmanager
async def serving(behave, *, channel_options=()):
    """`behave` is an async generator of responses."""
    listener, in_flight = Listener(), InFlight("the server is stopping")

    async def unary(request, context):
        return await anext(behave())

    async def stream(request, context):
        async for response in behave():
            yield response

    server = grpc.aio.server(
        interceptors=[
            CallInterceptor(listener, in_flight, Connections(), tracked_paths=frozenset({"/s/Unary", "/s/Stream"}))
        ]
    )
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("s", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=channel_options) as channel:
            yield Served(channel, listener, in_flight)
    finally:
        await server.stop(None)


def raising(error):
    async def behave():
        raise error
        yield b""

    return behave


async def test_a_response_passes():
    async def behave():
        yield b"a"
        yield b"b"

    async with serving(behave) as served:
        assert await served.unary(b"") == b"a"
        assert [response async for response in served.stream(b"")] == [b"a", b"b"]
        assert served.listener.started == [("unary", "s", "Unary"), ("server_stream", "s", "Stream")]
        assert await served.listener.ended.get() == ("unary", "Unary", "OK")
        assert await served.listener.ended.get() == ("server_stream", "Stream", "OK")
        assert served.in_flight.count == 0


@pytest.mark.parametrize(("error", "code"), WRONG.items(), ids=WRONG.values())
async def test_each_error_has_its_status(error, code):
    async with serving(raising(error)) as served:
        for call in (served.unary(b""), served.stream(b"").read()):
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call
            assert (failed.value.code().name, failed.value.details()) == (code, str(error))
            assert (await served.listener.ended.get())[2] == code


def test_every_error_class_is_in_the_table():
    assert {kind for kind in vars(errors).values() if isinstance(kind, type)} - set(STATUS) == {errors.AffinityError}


async def test_an_overloaded_server_returns_a_retry_hint():
    async with serving(raising(errors.Overloaded("full", retry_after_s=1.5))) as served:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.unary(b"")
        assert dict(failed.value.trailing_metadata())["retry-after-ms"] == "1500"


async def test_an_unknown_error_is_logged_and_not_returned(caplog):
    async with serving(raising(ZeroDivisionError("the secret"))) as served:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await served.unary(b"")
        assert (failed.value.code().name, failed.value.details()) == ("INTERNAL", INTERNAL_TEXT)
    assert "/s/Unary failed" in caplog.text
    assert "the secret" in caplog.text


class Endless:
    """A stream of one response that the client has to leave."""

    def __init__(self):
        self.closed = asyncio.Event()

    async def __call__(self):
        try:
            yield b"a"
            await asyncio.Event().wait()
        finally:
            self.closed.set()


async def test_a_client_that_cancels_closes_the_responses():
    async with serving(endless := Endless()) as served:
        call = served.stream(b"")
        await call.read()
        call.cancel()
        await endless.closed.wait()
        assert await served.listener.ended.get() == ("server_stream", "Stream", "CANCELLED")
        assert served.in_flight.count == 0


async def read_all(call):
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_client_whose_deadline_passes_closes_the_responses():
    code = ""
    for timeout in (0.05, 0.5, 5.0, 50.0):  # on a busy machine messages take longer than short deadlines allow for
        async with serving(endless := Endless()) as served:
            call = served.stream(b"", timeout=timeout)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await read_all(call)
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not served.listener.started:
                continue
            _, _, code = await served.listener.ended.get()
            assert served.in_flight.count == 0
        if code == "DEADLINE_EXCEEDED":
            break
    assert (code, endless.closed.is_set()) == ("DEADLINE_EXCEEDED", True)


async def test_a_stopping_server_refuses_tracked_calls():
    async with serving(raising(AssertionError("must not be called"))) as served:
        served.in_flight.close()
        with pytest.raises(grpc.aio.AioRpcError, match="stopping") as failed:
            await served.unary(b"")
        assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
