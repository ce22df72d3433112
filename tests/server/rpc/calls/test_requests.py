"""Calls without a message, and with bytes that are not a message, to every method of every service."""

from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from protos import affinity_pb2 as pb
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.open_inference.servicer import METHODS, STREAM
from server.rpc.server import build_server
from server.rpc.services import HEALTH, OPEN_INFERENCE, TYPED

REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name
STREAMS = {f"/{OPEN_INFERENCE}/{STREAM}": "bidi_stream", f"/{REFLECTION}/ServerReflectionInfo": "bidi_stream"}
RESPONSE_STREAMS = {f"/{TYPED}/Generate", f"/{HEALTH}/Watch"}
PATHS = [
    *(f"/{TYPED}/{method.name}" for method in pb.DESCRIPTOR.services_by_name["Affinity"].methods),
    *(f"/{OPEN_INFERENCE}/{method}" for method in METHODS),
    *(f"/{HEALTH}/{method}" for method in ("Check", "Watch")),
    f"/{REFLECTION}/ServerReflectionInfo",
]
TRUNCATED = b"\x0a\x05a"  # field 1 with a length of 5 and one byte


@asynccontextmanager
async def serving(tmp_path):
    """A server without models: its address and its metrics."""
    settings = Settings(artifacts=tmp_path, port=0)
    repository, metrics = Repository(settings), Metrics()
    server, port = build_server(settings, repository, metrics, Health(), InFlight("stopping"), Connections())
    await server.start()
    try:
        yield f"127.0.0.1:{port}", metrics
    finally:
        await server.stop(None)
        await repository.drain()


async def call(target, path, *messages):
    """Send the bytes of any number of messages. Returns the error."""

    async def iterate():
        for message in messages:
            yield message

    async with grpc.aio.insecure_channel(target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in channel.stream_stream(path)(iterate(), timeout=60):
                pass
    return failed.value


def count_of(metrics, path, code):
    _, service, method = path.split("/")
    kind = STREAMS.get(path, "server_stream" if path in RESPONSE_STREAMS else "unary")
    labels = {"grpc_type": kind, "grpc_service": service, "grpc_method": method, "grpc_code": code}
    return metrics.registry.get_sample_value("grpc_server_handled_total", labels)


@pytest.mark.parametrize("path", PATHS)
async def test_a_message_that_cannot_be_parsed_is_refused_and_counted(tmp_path, path, caplog):
    async with serving(tmp_path) as (target, metrics):
        error = await call(target, path, TRUNCATED)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details().startswith("the message of the call: found bytes that cannot be parsed, expected ")
        assert count_of(metrics, path, "INVALID_ARGUMENT") == 1
    assert [record for record in caplog.records if record.name.startswith(("server", "grpc"))] == []


@pytest.mark.parametrize("path", [path for path in PATHS if path not in STREAMS])
async def test_a_unary_call_without_a_message_is_refused_and_counted(tmp_path, path):
    async with serving(tmp_path) as (target, metrics):
        error = await call(target, path)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error.details() == "the message of the call: found none, expected one"
        assert count_of(metrics, path, "INVALID_ARGUMENT") == 1
