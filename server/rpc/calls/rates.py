"""Limits the rate of requests by caller: a client with a token, or else an address."""

import ipaddress
import time
from collections.abc import Callable
from urllib.parse import unquote

from server.admission.rate import RateLimit
from server.rpc.calls.context import GrpcContext, client_of_call

IPV6_PREFIX = 64  # a customer of a provider has at least so many addresses


class CallerRates:
    """Limits the requests per second of each caller; 0: no limit."""

    def __init__(self, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = RateLimit(per_second) if per_second else None
        self._clock = clock

    def check(self, context: GrpcContext) -> None:
        """Count a request of the caller. Raises Overloaded if there were too many."""
        if self._limit is not None:
            self._limit.take(caller_of(context), self._clock())


def caller_of(context: GrpcContext) -> str:
    """The client whose token came with the call; without a token, its address, or for IPv6 its network of 64 bits.

    gRPC spells addresses as `ipv4:10.0.0.1:50000`, `ipv6:%5B::1%5D:50000` and `unix:`.
    """
    if client := client_of_call():
        return f"client {client.name}"
    scheme, _, rest = context.peer().partition(":")
    host = unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{scheme} socket"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, IPV6_PREFIX), strict=False))
    return str(address)
