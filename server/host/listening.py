"""From a host and a port to listening sockets, on every address that the host has. Knows neither gRPC nor HTTP."""

import errno
import ipaddress
import os
import socket
from typing import Any

from server.errors import AffinityError

BACKLOG = 2048  # connections that wait to be accepted; the system has a limit of its own
WILDCARDS = ("0.0.0.0", "::")
ATTEMPTS = 20  # to find a port that is free on every address

SocketAddress = tuple[Any, ...]  # host and port; of IPv6 also the flow and the number of the network interface


class CannotListen(AffinityError):
    """A host that has no address on this machine, or a port that is not available on one of them."""


def listen(host: str, port: int, *, flag: str) -> list[socket.socket]:
    """A listening socket for each address of the host, all with the same port; port 0 selects a free one.

    Raises CannotListen, which names the address that failed, and `flag` as the option for the port.
    """
    addresses = resolve(host)
    for attempt in range(ATTEMPTS):
        sockets: list[socket.socket] = []
        try:
            for address in addresses:
                chosen = sockets[0].getsockname()[1] if sockets else port
                sockets.append(_open(address, chosen))
            return sockets
        except OSError as error:
            for opened in sockets:
                opened.close()
            if sockets and port == 0 and error.errno == errno.EADDRINUSE and attempt + 1 < ATTEMPTS:
                continue
            option = flag if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
            name = "" if spell(address, port) == with_port(host, port) else f" ({host})"
            reason = os.strerror(error.errno or 0)
            raise CannotListen(
                f"cannot listen on {spell(address, port)}{name}: {reason}; {option} chooses another"
            ) from error
    raise AssertionError("the last attempt returns or raises; this is a bug")


def resolve(host: str) -> list[SocketAddress]:
    """Every address of a host, once. Raises CannotListen if there is none.

    Both `0.0.0.0` and `::` mean all addresses of the machine, of IPv4 and, where it exists, of IPv6, because gRPC does
    not distinguish them. On a machine without IPv6, the `::1` of a name such as `localhost` is left out.
    """
    try:
        found = [address for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except (OSError, ValueError) as error:  # ValueError: a name that is too long or has an empty part
        reason = error.strerror if isinstance(error, OSError) else error
        raise CannotListen(f"cannot resolve the host {host!r}: {reason}; --host chooses another") from error
    if any(address[0] in WILDCARDS for address in found):
        return [("::", 0, 0, 0) if socket.has_dualstack_ipv6() else ("0.0.0.0", 0)]
    local = [address for address in found if address[0] != "::1" or _opens(address)]
    return list(dict.fromkeys(local or found))


def is_local(host: str) -> bool:
    """Whether only processes of this machine can connect to a host. Raises CannotListen."""
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for address in resolve(host))


def spell(address: SocketAddress, port: int) -> str:
    """An address with a port, as URLs and gRPC spell it: `127.0.0.1:8001`, `[fe80::1%eth0]:8001`."""
    return with_port(socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0], port)


def with_port(host: str, port: int) -> str:
    """A host with a port, as URLs and gRPC spell it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _open(address: SocketAddress, port: int) -> socket.socket:
    ipv6 = len(address) > 2
    opened = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # while old connections are closing
        if ipv6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` accepts IPv4, too
        opened.bind((address[0], port, *address[2:]))
        opened.listen(BACKLOG)
    except BaseException:
        opened.close()
        raise
    return opened


def _opens(address: SocketAddress) -> bool:
    try:
        _open(address, 0).close()
    except OSError:
        return False
    return True
