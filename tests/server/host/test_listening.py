"""A server listens on every address of its host, at one port, or says which address is not available."""

import socket
from contextlib import ExitStack

import grpc
import pytest

from server.host.listening import CannotListen, listen, resolve, spell
from server.rpc.ports import add_ports
from tests.serving import own_address


def ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not ipv6(), reason="this machine has no IPv6")
V4, V6 = (own_address(), 0), ("::1", 0, 0, 0)


def known_as(monkeypatch, *addresses):
    """Let every name have these addresses."""
    found = [
        (socket.AF_INET6 if len(address) > 2 else socket.AF_INET, socket.SOCK_STREAM, 6, "", address)
        for address in addresses
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def accepts(family, host, port):
    with socket.socket(family) as client:
        client.settimeout(30)
        return client.connect_ex((host, port)) == 0


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", [(socket.AF_INET, "127.0.0.1")]),
        ("localhost", [(socket.AF_INET, "127.0.0.1")]),
        ("0.0.0.0", [(socket.AF_INET, "127.0.0.1")]),
        ("0", [(socket.AF_INET, "127.0.0.1")]),
        pytest.param("::1", [(socket.AF_INET6, "::1")], marks=needs_ipv6),
        pytest.param("::", [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")], marks=needs_ipv6),
        pytest.param("0.0.0.0", [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")], marks=needs_ipv6),
        pytest.param("::ffff:127.0.0.1", [(socket.AF_INET, "127.0.0.1")], marks=needs_ipv6),
    ],
)
def test_a_host_is_reached_at_its_addresses(host, reached):
    with ExitStack() as stack:
        sockets = [stack.enter_context(opened) for opened in listen(host, 0, flag="--port")]
        port = sockets[0].getsockname()[1]
        assert all(accepts(family, address, port) for family, address in reached)


@needs_ipv6
def test_a_name_with_several_addresses_has_one_port_on_each(monkeypatch):
    known_as(monkeypatch, V4, V6, V4)
    with ExitStack() as stack:
        names = [stack.enter_context(opened).getsockname() for opened in listen("both", 0, flag="--port")]
    assert [name[0] for name in names] == [V4[0], V6[0]]
    assert names[0][1] == names[1][1]


@needs_ipv6
async def test_grpc_listens_on_each_address_of_a_name(monkeypatch):
    known_as(monkeypatch, V4, V6)
    server = grpc.aio.server()
    port = add_ports(server, "both", 0)
    await server.start()
    try:
        for target in (f"{V4[0]}:{port}", f"[::1]:{port}"):
            async with grpc.aio.insecure_channel(target) as channel:
                await channel.channel_ready()
    finally:
        await server.stop(None)


@needs_ipv6
def test_an_address_that_is_not_available_is_named(monkeypatch):
    with socket.create_server(V6[:2], family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        known_as(monkeypatch, V4, V6)
        with pytest.raises(CannotListen) as error:
            listen("both", port, flag="--http-port")
    expected = rf"cannot listen on [::1]:{port} (both): Address already in use; --http-port chooses another"
    assert str(error.value) == expected
    with socket.create_server((V4[0], port)):  # the other address is free again
        pass


def test_an_address_of_another_machine_is_refused_with_the_option_to_change():
    with pytest.raises(CannotListen, match=r"cannot listen on 192\.0\.2\.1:0: .*; --host chooses another"):
        listen("192.0.2.1", 0, flag="--port")


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "x" * 300, "host:8001", "unix:/socket"])
def test_a_host_that_does_not_resolve_is_an_error_with_its_name(host):
    with pytest.raises(CannotListen) as error:
        resolve(host)
    assert f"cannot resolve the host {host!r}: " in str(error.value)
    assert "--host chooses another" in str(error.value)


def test_without_ipv6_its_loopback_address_is_left_out(monkeypatch):
    known_as(monkeypatch, V6, V4)

    class OnlyIpv4(socket.socket):
        def __init__(self, family=socket.AF_INET, *rest):
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest)

    monkeypatch.setattr(socket, "socket", OnlyIpv4)
    assert resolve("localhost") == [V4]
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    known_as(monkeypatch, ("::", 0, 0, 0))
    assert resolve("::") == [("0.0.0.0", 0)]


@pytest.mark.parametrize(("address", "spelt"), [(("127.0.0.1", 0), "127.0.0.1:80"), (V6, "[::1]:80")])
def test_addresses_are_spelt_as_in_urls(address, spelt):
    assert spell(address, 80) == spelt
