"""How clients reach servers: addresses, replicas, TLS and tokens. Against a stand-in."""

import asyncio
import tempfile
import traceback
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from server.client import AsyncClient, CallFailed, Client, Tls, Unreachable
from server.client.connection import Connection, is_local, read_token
from server.errors import WrongTask
from tests.certificates import Authority, server_credentials
from tests.server.client.stand_in import BOTH, WAIT_S, StandIn, connected, serving

TOKEN = "a-secret-token"


@pytest.fixture(params=BOTH)
def kind(request):
    return request.param


@pytest.fixture
async def stand_in():
    return StandIn()


# ---- addresses and replicas


@pytest.mark.parametrize(
    ("server", "target", "balanced"),
    [
        ("127.0.0.1:8001", "127.0.0.1:8001", False),
        ("unix:/run/affinity.sock", "unix:/run/affinity.sock", False),
        ("dns:///affinity:8001", "dns:///affinity:8001", True),
        ("10.0.0.1:8001,10.0.0.2:8001", "ipv4:10.0.0.1:8001,10.0.0.2:8001", True),
        ("10.0.0.1:8001, 10.0.0.2:9001", "ipv4:10.0.0.1:8001,10.0.0.2:9001", True),
        ("[::1]:8001,[::2]:8001", "ipv6:[::1]:8001,[::2]:8001", True),
    ],
)
def test_an_address_or_several_become_a_target(server, target, balanced):
    connection = Connection(server)
    assert (connection.target, connection.balanced) == (target, balanced)
    assert ("round_robin" in str(connection.options)) == balanced


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (
            "localhost:8001,127.0.0.1:8001",
            "server: found 'localhost:8001' in a list, expected an IP address and a port",
        ),
        ("10.0.0.1,10.0.0.2", r"server: found '10\.0\.0\.1' in a list"),
        ("10.0.0.1:8001,", "server: found '' in a list"),
        ("10.0.0.1:8001,[::1]:8001", "server: found ipv4 and ipv6 addresses, expected one kind"),
        ("", "server: found '', expected an address"),
        ("dns:///", "server: found 'dns:///', expected an address"),
    ],
)
def test_servers_that_gRPC_cannot_use_are_refused(server, message):  # noqa: N802
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match=message):
            client(server)


def test_several_addresses_with_tls_need_the_name_in_their_certificates():
    with pytest.raises(ValueError, match="server: found several addresses with TLS, expected the server_name"):
        Client("10.0.0.1:8001,10.0.0.2:8001", tls=Tls())


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_deadline_is_a_positive_number(timeout_s):
    with pytest.raises(ValueError, match="timeout: found"):
        Client(timeout_s=timeout_s)


async def test_calls_go_to_the_replicas_in_turn(kind):
    replicas = [StandIn() for _ in range(3)]
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(serving(replica)) for replica in replicas]
        targets = ",".join(f"127.0.0.1:{port}" for port in ports)
        client = await stack.enter_async_context(connected(kind, targets))
        async with asyncio.timeout(WAIT_S):
            while not all(replica.requests for replica in replicas):
                await client.run("embed", ["a"], model="m")


async def test_a_replica_that_is_not_serving_gets_no_calls(kind):
    replicas = [StandIn() for _ in range(3)]
    replicas[1].status = HealthCheckResponse.NOT_SERVING
    async with AsyncExitStack() as stack:
        ports = [await stack.enter_async_context(serving(replica)) for replica in replicas]
        targets = ",".join(f"127.0.0.1:{port}" for port in ports)
        client = await stack.enter_async_context(connected(kind, targets))
        async with asyncio.timeout(WAIT_S):
            while not (replicas[0].requests and replicas[2].requests and replicas[1].watched.is_set()):
                await client.run("embed", ["a"], model="m")
        assert not replicas[1].requests


async def test_without_a_serving_replica_the_error_says_so(kind, stand_in):
    stand_in.status = HealthCheckResponse.NOT_SERVING
    async with serving(stand_in) as port, connected(kind, f"dns:///127.0.0.1:{port}", retries=False) as client:
        with pytest.raises(CallFailed, match="no replica of .* is serving"):
            await client.run("embed", ["a"], model="m")


async def test_calls_go_to_the_other_replicas_when_one_is_gone(kind):
    replicas = [StandIn(), StandIn()]
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(replicas[0]))
        async with serving(replicas[1]) as other:
            client = await stack.enter_async_context(connected(kind, f"127.0.0.1:{port},127.0.0.1:{other}"))
            async with asyncio.timeout(WAIT_S):
                while not replicas[1].requests:
                    await client.run("embed", ["a"], model="m")
        for _ in range(20):
            await client.run("embed", ["a"], model="m")


async def test_a_name_is_resolved(kind, stand_in):
    async with serving(stand_in, address="localhost:0") as port, connected(kind, f"dns:///localhost:{port}") as client:
        assert await client.run("embed", ["a"], model="m") == [[1, 1]]


async def test_a_unix_domain_socket_is_an_address(kind, stand_in):
    with tempfile.TemporaryDirectory() as directory:  # its path is short enough
        address = f"unix:{directory}/socket"
        async with serving(stand_in, address=address), connected(kind, address) as client:
            assert await client.run("embed", ["a"], model="m") == [[1, 1]]


# ---- TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.sign("server")


@pytest.fixture
async def encrypted(stand_in, certificate):
    """The port of a stand-in with TLS."""
    async with serving(stand_in, credentials=server_credentials(certificate)) as port:
        yield port


@pytest.mark.parametrize("address", ["localhost:{0}", "127.0.0.1:{0}", "dns:///localhost:{0}"])
async def test_a_server_with_a_trusted_certificate_is_called(kind, encrypted, authority, address):
    async with connected(kind, address.format(encrypted), tls=Tls(authority.certificate)) as client:
        assert await client.run("embed", ["a"], model="m") == [[1, 1]]
        await client.parts(2)


async def test_replicas_with_certificates_for_another_name_are_called(kind, encrypted, stand_in, authority):
    other = authority.sign("named", names=("affinity.example",))
    tls = Tls(authority.certificate, server_name="affinity.example")
    async with serving(stand_in, credentials=server_credentials(other)) as port:
        for target in (f"127.0.0.1:{port}", f"127.0.0.1:{port},127.0.0.2:{port}"):
            async with connected(kind, target, tls=tls) as client:
                assert await client.run("embed", ["a"], model="m") == [[1, 1]]
        async with connected(kind, f"127.0.0.1:{port}", tls=Tls(authority.certificate), retries=False) as client:
            with pytest.raises(CallFailed, match="no TLS connection to .*: .* Hostname Verification Check failed"):
                await client.run("embed", ["a"], model="m")


async def test_an_untrusted_certificate_is_refused_with_the_reason(kind, encrypted, tmp_path):
    tls = Tls(Authority(tmp_path, "another").certificate)
    async with connected(kind, f"127.0.0.1:{encrypted}", tls=tls, retries=False) as client:
        with pytest.raises(CallFailed, match=r"no TLS connection to 127\.0\.0\.1:\d+: .*CERTIFICATE_VERIFY_FAILED"):
            await client.run("embed", ["a"], model="m")


async def test_a_server_with_TLS_is_not_called_without(kind, encrypted, stand_in):  # noqa: N802
    async with connected(kind, f"127.0.0.1:{encrypted}", retries=False) as client:
        with pytest.raises(Unreachable, match="it closes connections; does it require TLS"):
            await client.run("embed", ["a"], model="m")


async def test_a_server_without_TLS_is_not_called_with_it(kind, stand_in, authority):  # noqa: N802
    tls = Tls(authority.certificate)
    async with (
        serving(stand_in) as port,
        connected(kind, f"127.0.0.1:{port}", tls=tls, retries=False) as client,
    ):
        with pytest.raises(CallFailed, match="no TLS connection"):
            await client.run("embed", ["a"], model="m")


async def test_the_client_has_a_certificate_of_its_own(kind, stand_in, authority, certificate):
    credentials = server_credentials(certificate, client_ca=authority.certificate)
    async with serving(stand_in, credentials=credentials) as port:
        own = Tls(authority.certificate, *authority.sign("client"))
        async with connected(kind, f"127.0.0.1:{port}", tls=own) as client:
            assert await client.run("embed", ["a"], model="m") == [[1, 1]]
        tls = Tls(authority.certificate)
        async with connected(kind, f"127.0.0.1:{port}", tls=tls, retries=False) as client:
            with pytest.raises(CallFailed):
                await client.run("embed", ["a"], model="m")


def test_a_certificate_has_a_key_and_its_file_exists(tmp_path):
    with pytest.raises(ValueError, match="TLS: found a certificate without a key"):
        Tls(certificate=tmp_path / "some.pem")
    with pytest.raises(ValueError, match="TLS: found a key without a certificate"):
        Tls(key=tmp_path / "some.key")
    for client in (Client, AsyncClient):
        with pytest.raises(FileNotFoundError, match="missing.pem"):
            client(tls=Tls(tmp_path / "missing.pem"))


def test_files_that_grpc_cannot_use_are_named(tmp_path):
    authority, damaged = Authority(tmp_path), tmp_path / "damaged.pem"
    damaged.write_text("no certificate")
    certificate, _ = authority.sign("client")
    _, other_key = authority.sign("other")
    for client in (Client, AsyncClient):
        with pytest.raises(ValueError, match=r"TLS: \S+damaged.pem: cannot be used"):
            client(tls=Tls(damaged))
        with pytest.raises(ValueError, match=r"TLS: \S+ and \S+: cannot be used: KEY_VALUES_MISMATCH"):
            client(tls=Tls(authority.certificate, certificate, other_key))


# ---- tokens


async def test_a_token_is_sent_with_each_call(kind, stand_in, monkeypatch):
    monkeypatch.delenv("AFFINITY_TOKEN", raising=False)
    sent = []
    async with serving(stand_in) as port:
        for token, variable in ((TOKEN, ""), (None, TOKEN), (None, f"{TOKEN}\n"), (None, ""), ("", TOKEN)):
            monkeypatch.setenv("AFFINITY_TOKEN", variable)
            async with connected(kind, f"127.0.0.1:{port}", token=token) as client:
                await client.run("embed", ["a"], model="m")
                await client.parts(1)
            sent.append([metadata.get("authorization") for metadata in stand_in.metadata[-2:]])
    assert sent == [[f"Bearer {TOKEN}"] * 2] * 3 + [[None] * 2] * 2


async def test_an_error_does_not_show_the_token(kind, stand_in):
    stand_in.errors = [WrongTask("it generates")]
    async with serving(stand_in) as port, connected(kind, f"127.0.0.1:{port}", token=TOKEN) as client:
        with pytest.raises(CallFailed) as failed:
            await client.run("embed", ["a"], model="m")
    shown = "".join(traceback.format_exception(failed.value))
    assert "it generates" in shown
    assert TOKEN not in shown + repr(Connection(token=TOKEN))


@pytest.mark.parametrize("token", ["a secret", "a\nsecret", "sécret", "a\x00secret"])
def test_a_token_that_cannot_be_sent_is_refused_without_showing_it(token, monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text(token)
    monkeypatch.setenv("AFFINITY_TOKEN", token.replace("\x00", "\x01"))
    for read, source in (
        (lambda: Client(token=token), "token"),
        (Client, "AFFINITY_TOKEN"),
        (lambda: read_token(file), file),
    ):
        with pytest.raises(ValueError, match=f"{source}: found spaces, control characters") as refused:
            read()
        assert "cret" not in str(refused.value)


def test_a_token_is_read_from_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    file.write_text("\n")
    with pytest.raises(ValueError, match="token: found an empty file"):
        read_token(file)
    with pytest.raises(FileNotFoundError):
        read_token(Path(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("server", "local"),
    [
        ("127.0.0.1:8001", True),
        ("localhost:8001", True),
        ("[::1]:8001", True),
        ("unix:/run/affinity.sock", True),
        ("dns:///localhost:8001", True),
        ("127.0.0.1:8001,10.0.0.1:8001", False),
        ("10.0.0.1:8001", False),
        ("affinity:8001", False),
    ],
)
def test_servers_on_the_same_machine_are_known(server, local):
    assert is_local(server) == local
