"""The gRPC server and its connections."""

import asyncio

from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.health import Health
from server.rpc.server import build_server

# The preface of a connection, an empty SETTINGS frame, and an acknowledgement of the server's settings: a client that
# does not send the acknowledgement is disconnected after 60 s for that reason.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000" + "000000040100000000")


async def test_a_silent_client_is_disconnected(tmp_path, monkeypatch):
    monkeypatch.setattr("server.rpc.server.KEEPALIVE_MS", 50)
    monkeypatch.setattr("server.rpc.server.KEEPALIVE_TIMEOUT_MS", 50)
    settings = Settings(artifacts=tmp_path, port=0)
    repository, metrics = Repository(settings), Metrics()
    server, port = build_server(settings, repository, metrics, Health(), InFlight("stopping"))
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(PREFACE)
        received = await asyncio.wait_for(reader.read(), 20)  # until the server closes the connection
        assert b"ping_timeout" in received
    finally:
        writer.close()
        await server.stop(None)
        await repository.drain()
