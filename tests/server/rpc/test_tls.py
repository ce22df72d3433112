"""TLS on the ports of gRPC and HTTP: versions, certificates of both sides, and their replacement."""

import asyncio
import http.client
import shutil
import socket
import ssl
import subprocess
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.admission.in_flight import InFlight
from server.auth.certificates import watch_certificates
from server.auth.security import Security
from server.config.settings import Settings
from server.observability.http import HttpServer
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.server import build_server
from tests.certificates import Authority

PATIENCE_S = 30
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl command")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that nobody knows."""
    return Authority(tmp_path_factory.mktemp("tls") / "stranger")


@asynccontextmanager
async def serving(tmp_path, issued, client_ca=None):
    """The certificates of a server without models, and its ports for gRPC and HTTP."""
    certificates = watch_certificates(*issued, client_ca) if issued else None
    security, settings = Security(certificates=certificates), Settings(artifacts=tmp_path, port=0)
    repository, metrics = Repository(settings), Metrics()
    http_server = HttpServer(settings.host, 0, metrics.registry, lambda: True, security=security)
    server, port = build_server(settings, repository, metrics, Health(), InFlight("stopping"), Connections(), security)
    await server.start()
    try:
        yield certificates, port, http_server.port
    finally:
        await server.stop(None)
        await repository.drain()
        http_server.stop()


async def health(port, credentials):
    """The status code of a call on a new connection."""
    own_connection = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=own_connection) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


def get(port, path, context, *, headers=()):
    """The status of a request over HTTPS; "refused" if there was no connection for it."""
    connection = http.client.HTTPSConnection("localhost", port, timeout=PATIENCE_S, context=context)
    try:
        connection.request("GET", path, headers=dict(headers))
        return connection.getresponse().status
    except (ssl.SSLError, ConnectionError):
        return "refused"
    finally:
        connection.close()


def trusting(authority, client=None):
    """The context of a client that trusts an authority."""
    context = ssl.create_default_context(cafile=authority.certificate)
    if client:
        context.load_cert_chain(client.certificate, client.key)
    return context


def presented(port, authority, *, protocol="http/1.1"):
    """The server's certificate on a new connection."""
    context = trusting(authority)
    context.set_alpn_protocols([protocol])
    plain = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    with plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        return ssl.DER_cert_to_PEM_cert(client.getpeercert(binary_form=True))


@needs_openssl
@pytest.mark.parametrize(
    ("version", "accepted"), [("tls1_3", True), ("tls1_2", True), ("tls1_1", False), ("tls1", False)]
)
async def test_versions_of_tls_before_1_2_are_refused(tmp_path, authority, version, accepted):
    async with serving(tmp_path, authority.sign("server")) as (_, *ports):
        for port, protocol in zip(ports, ("h2", "http/1.1"), strict=True):
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", f"-{version}", "-alpn", protocol]
            command += ["-CAfile", authority.certificate, "-verify_return_error", "-cipher", "DEFAULT@SECLEVEL=0"]
            options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": PATIENCE_S}
            done = await asyncio.to_thread(subprocess.run, command, **options)
            assert (done.returncode == 0) == accepted, done
            assert (b"Cipher is (NONE)" in done.stdout) != accepted
            assert b"Verify return code: 0 (ok)" in done.stdout


async def test_a_client_that_trusts_the_authority_is_answered_and_others_do_not_connect(tmp_path, authority, stranger):
    async with serving(tmp_path, authority.sign("server")) as (_, port, http_port):
        assert await health(port, authority.credentials()) == "OK"
        assert await health(port, stranger.credentials()) == "UNAVAILABLE"
        assert await asyncio.to_thread(get, http_port, "/metrics", trusting(authority)) == 200
        assert await asyncio.to_thread(get, http_port, "/metrics", trusting(stranger)) == "refused"
        async with grpc.aio.insecure_channel(f"localhost:{port}") as plain:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await health_pb2_grpc.HealthStub(plain).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
            assert error.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_expired_certificate_of_the_server_is_refused_by_its_clients(tmp_path, authority):
    async with serving(tmp_path, authority.sign("old", expired=True)) as (_, port, http_port):
        assert await health(port, authority.credentials()) == "UNAVAILABLE"
        assert await asyncio.to_thread(get, http_port, "/livez", trusting(authority)) == "refused"


async def test_with_mutual_tls_clients_need_a_certificate_and_probes_over_http_do_not(tmp_path, authority, stranger):
    clients = {
        "valid": authority.sign("client"),
        "expired": authority.sign("expired", expired=True),
        "of a stranger": stranger.sign("client"),
        "none": None,
    }
    async with serving(tmp_path, authority.sign("server"), authority.certificate) as (_, port, http_port):
        statuses = {kind: await health(port, authority.credentials(client)) for kind, client in clients.items()}
        assert statuses == {"valid": "OK"} | dict.fromkeys(("expired", "of a stranger", "none"), "UNAVAILABLE")
        answers = {
            kind: [
                await asyncio.to_thread(get, http_port, path, trusting(authority, client))
                for path in ("/livez", "/readyz", "/metrics", "/metrics/own")
            ]
            for kind, client in clients.items()
        }
    assert answers == {
        "valid": [200] * 4,
        "none": [200, 200, 403, 403],
        "expired": ["refused"] * 4,
        "of a stranger": ["refused"] * 4,
    }


@pytest.mark.parametrize("encrypted", [True, False])
async def test_a_client_that_says_nothing_is_disconnected(tmp_path, authority, monkeypatch, encrypted):
    monkeypatch.setattr("server.rpc.server.HANDSHAKE_TIMEOUT_MS", 50)
    async with serving(tmp_path, authority.sign("server") if encrypted else None) as (_, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.wait_for(reader.read(), PATIENCE_S)  # until the server closes the connection
        writer.close()
        await writer.wait_closed()


async def test_new_connections_get_a_replaced_certificate_and_old_ones_stay(tmp_path, authority, caplog):
    issued = authority.sign("server")
    async with serving(tmp_path, issued) as (certificates, port, http_port):

        async def seen():
            ports = ((port, "h2"), (http_port, "http/1.1"))
            return {await asyncio.to_thread(presented, each, authority, protocol=p) for each, p in ports}

        async with grpc.aio.secure_channel(f"localhost:{port}", authority.credentials()) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            first = issued.certificate.read_text()
            assert await seen() == {first}
            issued.replace_by(authority.sign("second"))
            assert [certificates.refresh(), certificates.refresh()] == [False, True]
            assert await seen() == {issued.certificate.read_text()} != {first}
            issued.key.write_bytes(b"broken")
            assert [certificates.refresh(), certificates.refresh()] == [False, False]
            assert await seen() == {issued.certificate.read_text()}
            assert caplog.text.count("found no private key") == 1
            await stub.Check(health_pb2.HealthCheckRequest())
            assert not watch.done()
            watch.cancel()


async def test_replaced_authorities_decide_about_new_clients(tmp_path, authority, stranger):
    trusted = tmp_path / "clients.pem"
    trusted.write_bytes(authority.certificate.read_bytes())
    ours, theirs = authority.sign("client"), stranger.sign("client")
    async with serving(tmp_path, authority.sign("server"), trusted) as (certificates, port, http_port):

        async def accepted():
            return [
                (
                    await health(port, authority.credentials(client)),
                    await asyncio.to_thread(get, http_port, "/metrics", trusting(authority, client)),
                )
                for client in (ours, theirs)
            ]

        assert await accepted() == [("OK", 200), ("UNAVAILABLE", "refused")]
        trusted.write_bytes(stranger.certificate.read_bytes())
        assert [certificates.refresh(), certificates.refresh()] == [False, True]
        assert await accepted() == [("UNAVAILABLE", "refused"), ("OK", 200)]
