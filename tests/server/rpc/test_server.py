"""The gRPC server and its connections."""

import asyncio
import re
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc._cython import cygrpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.server import build_server
from server.rpc.services import OPEN_INFERENCE
from tests.frames import ACK, GOAWAY, PING, PREFACE, SETTINGS, frame, relay
from tests.serving import ROOT

# A client that does not acknowledge the server's settings is disconnected after 60 s for that reason.
HELLO = PREFACE + frame(SETTINGS) + frame(SETTINGS, flags=ACK)

PINGING = [
    ("grpc.keepalive_time_ms", 20),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
PINGS = 120 // 10  # of a client that pings every ten seconds for two minutes


@asynccontextmanager
async def serving(tmp_path, **settings):
    """The port of a server without models."""
    settings = Settings(artifacts=tmp_path, port=0, **settings)
    repository, metrics = Repository(settings), Metrics()
    server, port = build_server(settings, repository, metrics, Health(), InFlight("stopping"), Connections())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)
        await repository.drain()


async def test_a_silent_client_is_disconnected(tmp_path, monkeypatch):
    monkeypatch.setattr("server.rpc.server.KEEPALIVE_MS", 50)
    monkeypatch.setattr("server.rpc.server.KEEPALIVE_TIMEOUT_MS", 50)
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HELLO)
        received = await asyncio.wait_for(reader.read(), 60)  # until the server closes the connection
        assert b"ping_timeout" in received
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_pings_keeps_its_connection(tmp_path):
    """Both at the same time: gRPC's clients send a ping a second at most."""
    await asyncio.gather(*(stays_connected(tmp_path, with_call=with_call) for with_call in (True, False)))


async def stays_connected(tmp_path, *, with_call):
    """Let a client send pings, with a call in flight or without one."""
    pings, enough, kinds = 0, asyncio.Event(), set()

    def from_client(kind, flags, payload):
        nonlocal pings
        pings += kind == PING and not flags & ACK
        if pings >= PINGS:
            enough.set()

    async with (
        serving(tmp_path) as port,
        relay(port, from_client=from_client, from_server=lambda kind, *_: kinds.add(kind)) as relayed,
        grpc.aio.insecure_channel(f"127.0.0.1:{relayed}", options=PINGING) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        await health.Check(request)
        watch = health.Watch(request) if with_call else None
        if watch:
            await watch.read()
        await asyncio.wait_for(enough.wait(), 60)
        await health.Check(request)
        assert GOAWAY not in kinds
        if watch:
            assert not watch.done()
            watch.cancel()


async def test_no_number_of_pings_is_too_many(tmp_path):
    """More than any interval allows: each ping is sent as soon as the one before it is acknowledged."""
    async with serving(tmp_path) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HELLO)
        for number in range(100):
            payload = number.to_bytes(8, "big")
            writer.write(frame(PING, payload))
            await asyncio.wait_for(reader.readuntil(frame(PING, payload, flags=ACK)), 30)
        writer.close()
        await writer.wait_closed()


class Frames:
    """What a relay saw: how many connections clients opened, and when the server sent the first GOAWAY."""

    def __init__(self):
        self.connections, self.goaway = 0, asyncio.Event()

    def from_client(self, kind, flags, payload):
        self.connections += kind == SETTINGS and not flags & ACK

    def from_server(self, kind, flags, payload):
        if kind == GOAWAY:
            self.goaway.set()


def open_stream(channel):
    """A ModelStreamInfer call that stays open."""
    return channel.stream_stream(
        f"/{OPEN_INFERENCE}/ModelStreamInfer",
        request_serializer=ModelInferRequest.SerializeToString,
        response_deserializer=ModelStreamInferResponse.FromString,
    )()


async def answered(stream):
    """Whether the server answers on a stream. It has no models, so the answer is an error message."""
    await stream.write(ModelInferRequest(model_name="none"))
    return (await asyncio.wait_for(stream.read(), 30)).error_message.startswith("model: found 'none'")


async def test_streams_in_flight_survive_the_age_of_their_connection(tmp_path):
    seen = Frames()
    async with (
        serving(tmp_path, max_connection_age_seconds=0.2) as port,
        relay(port, from_client=seen.from_client, from_server=seen.from_server) as relayed,
        grpc.aio.insecure_channel(f"127.0.0.1:{relayed}") as channel,
    ):
        stream = open_stream(channel)
        assert await answered(stream)
        await asyncio.wait_for(seen.goaway.wait(), 30)
        assert await answered(stream)
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert seen.connections > 1
        await stream.done_writing()
        assert await asyncio.wait_for(stream.code(), 30) is grpc.StatusCode.OK


async def test_streams_end_with_the_grace_of_their_connection(tmp_path):
    settings = {"max_connection_age_seconds": 0.2, "max_connection_age_grace_seconds": 0.2}
    async with serving(tmp_path, **settings) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await asyncio.wait_for(open_stream(channel).code(), 60) is grpc.StatusCode.UNAVAILABLE


def test_grpc_knows_every_option_that_is_set():
    """gRPC ignores unknown options silently."""
    files = (file for package in ("server", "tests") for file in (ROOT / package).rglob("*.py"))
    names = {name for file in files for name in re.findall(r'\("(grpc\.[\w.]+)", ', file.read_text())}
    assert "grpc.keepalive_time_ms" in names
    core = Path(cygrpc.__file__).read_bytes()
    assert [name for name in sorted(names) if b"\0" + name.encode() + b"\0" not in core] == []
