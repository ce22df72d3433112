"""The connections of a gRPC server, and how they end when the server stops: GOAWAY first, then the last responses.

The `stop` of a gRPC server sends GOAWAY, too, but cancels every call that arrives after it has begun. The clients of
these calls could not know yet, and see CANCELLED. Here, clients learn of the stop while the server still answers: they
send further calls elsewhere, and the server answers the calls that were on their way. In the end the server closes its
side of the connections, and clients report a call without an answer as UNAVAILABLE. gRPC has no function for either of
these steps, so the server finds the sockets among its open files (on Linux). On other systems only `stop` remains.

With TLS, only gRPC can write on a connection, so clients do not get GOAWAY. The server closes its side of such a
connection as soon as it has answered the calls that are in flight on it. Calls that arrive in the meantime wait for
that: their clients then see UNAVAILABLE and no connection, and send them elsewhere. A call that is refused could come
here again.
"""

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from server.admission.in_flight import InFlight
from server.rpc.calls.context import GrpcContext

ON_THIS_MACHINE = -1  # in place of the port of clients of Unix-domain sockets: gRPC does not distinguish these

OWN_FILES = "/proc/self/fd"

# RFC 9113, 6.8: the highest stream id says that every call that is on its way is still accepted.
GOAWAY_PAYLOAD = struct.pack(">II", 2**31 - 1, 0) + b"the server is stopping"
GOAWAY = len(GOAWAY_PAYLOAD).to_bytes(3, "big") + bytes((7, 0, 0, 0, 0, 0)) + GOAWAY_PAYLOAD

FIRST_RETRY_S, LAST_RETRY_S = 0.002, 0.1
LEAVE_S = 1.0  # the time for clients to leave after GOAWAY, and to close connections after the server has


@dataclass(frozen=True)
class Connection:
    """An open connection: the port of the client, a number that no other socket has, and a duplicate of the socket."""

    port: int
    inode: int
    socket: socket.socket


class Connections:
    """Ends the connections of one server. The interceptor reports when gRPC writes responses on them."""

    def __init__(self) -> None:
        self.port = 0  # of the server, once it is known
        self.paths: Collection[str] = ()  # that its Unix-domain sockets are bound to
        self.encrypted = False  # whether connections to the port have TLS
        self._writing: Counter[int] = Counter()  # port of a client → responses that gRPC is writing
        self._pending: set[int] = set()  # inodes of connections whose clients do not have GOAWAY yet
        self._calls: Counter[int] = Counter()  # port of a client → calls in flight
        self._open_at_stop: frozenset[int] = frozenset()  # ports of clients that get GOAWAY
        self._closing: frozenset[int] = frozenset()  # ports of clients whose connections end without it

    # ---- during calls

    def was_open_at_stop(self, context: GrpcContext) -> bool:
        """Whether the server is stopping, and sends GOAWAY to the client, which could not know that before."""
        return bool(self._open_at_stop) and _port(context) in self._open_at_stop

    async def wait_for_close(self, context: GrpcContext) -> None:
        """Wait, at most for a moment, for the end of the connection if it is about to be closed."""
        if self._closing and _port(context) in self._closing:
            await asyncio.sleep(LEAVE_S)  # the end of the connection cancels the call

    def calling(self, context: GrpcContext) -> contextlib.AbstractContextManager[None]:
        """Note that a call is in flight during the block."""
        return _Counted(self._calls, _port(context))

    def writing(self, context: GrpcContext) -> contextlib.AbstractContextManager[None]:
        """Note that a message of a call is being written during the block."""
        return _Counted(self._writing, _port(context))

    def writing_last(self, context: GrpcContext) -> None:
        """Note that the last message and the status of a call are being written from now to its end."""
        port = _port(context)
        self._writing[port] += 1
        context.add_done_callback(lambda _: _release(self._writing, port))  # type: ignore[arg-type]  # the stub wants a name

    # ---- at the stop

    def begin_stop(self) -> None:
        """Accept no more connections, and send away the clients of those that are open.

        Where that has to wait, `drain` does it.
        """
        self._close_listeners()
        with self._connections() as connections:
            self._pending = {each.inode for each in connections}
            ports = frozenset(each.port for each in connections)
            self._closing = ports - {ON_THIS_MACHINE} if self.encrypted else frozenset()
            self._open_at_stop = ports - self._closing
            self._send_away(connections)

    async def drain(self, in_flight: InFlight, timeout_s: float) -> bool:
        """Wait until all requests are answered and the clients have left, or had the time to.

        Returns False if requests are left after the timeout. Further calls are refused.
        """
        try:
            return await self._drain(in_flight, timeout_s)
        finally:
            self._open_at_stop = frozenset()

    async def _drain(self, in_flight: InFlight, timeout_s: float) -> bool:
        clock, delay_s = asyncio.get_running_loop().time, FIRST_RETRY_S
        start = clock()
        while True:
            if self._pending or not in_flight.count:
                with self._connections() as connections:
                    self._send_away(connections)
                if not in_flight.count and (not connections or clock() >= start + min(LEAVE_S, timeout_s)):
                    return True
            if clock() >= start + timeout_s:
                return False
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, LAST_RETRY_S)

    async def close(self) -> None:
        """Close the server's side of every connection after the responses that are being written."""
        await self._wait(lambda: not self._writing)
        with self._connections() as connections:
            for connection in connections:
                with contextlib.suppress(OSError):  # the client was faster
                    connection.socket.shutdown(socket.SHUT_WR)
        await self._wait(lambda: not self._count())

    async def _wait(self, condition: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                while not condition():
                    await asyncio.sleep(FIRST_RETRY_S)

    def _count(self) -> int:
        with self._connections() as connections:
            return len(connections)

    def _send_away(self, connections: list[Connection]) -> None:
        """Send GOAWAY to the clients that do not have it yet, except where gRPC may be in the middle of a frame.

        gRPC begins to write responses when this thread says so. What it writes by itself is so small that the socket
        takes it at once unless its buffer is full. So gRPC is between two frames if the socket has sent everything and
        no response is being written. With TLS, the connection is closed instead if no call is in flight, either.
        """
        self._pending &= {each.inode for each in connections}
        for each in connections:
            closing = each.port in self._closing
            busy = each.port in self._writing or (closing and each.port in self._calls)
            if each.inode not in self._pending or busy or _count_unsent(each.socket):
                continue
            with contextlib.suppress(OSError):  # the client has closed the connection
                if closing:
                    each.socket.shutdown(socket.SHUT_WR)
                else:
                    each.socket.send(GOAWAY, socket.MSG_DONTWAIT)
            self._pending.discard(each.inode)

    # ---- sockets

    @contextlib.contextmanager
    def _connections(self) -> Iterator[list[Connection]]:
        """The connections that are open."""
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(found) for _, found in _own_sockets(self.port, self.paths)]
            connections: list[Connection] = []
            for found in sockets:
                with contextlib.suppress(OSError):  # it listens, or is closed
                    peer = found.getpeername()
                    port = ON_THIS_MACHINE if found.family == socket.AF_UNIX else peer[1]
                    connections.append(Connection(port, os.fstat(found.fileno()).st_ino, found))
            yield connections

    def _close_listeners(self) -> None:
        """Close the sockets that listen. Others that never get a connection take their place in gRPC."""
        for descriptor, found in _own_sockets(self.port, self.paths):
            with found:
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    with socket.socket(socket.AF_UNIX) as silent:
                        silent.bind("")  # Linux chooses an unused address
                        silent.listen()
                        silent.setblocking(False)
                        os.dup2(silent.fileno(), descriptor, inheritable=False)


class _Counted:
    """Counts one more for the port during a `with` block."""

    def __init__(self, counter: Counter[int], port: int) -> None:
        self._counter, self._port = counter, port

    def __enter__(self) -> None:
        self._counter[self._port] += 1

    def __exit__(self, *error: object) -> None:
        _release(self._counter, self._port)


def _release(counter: Counter[int], port: int) -> None:
    """Count one less for the port."""
    counter[port] -= 1
    if not counter[port]:
        del counter[port]


def _port(context: GrpcContext) -> int:
    """The port of the client of a call; ON_THIS_MACHINE if it has none."""
    return _port_of(context.peer())


@lru_cache(maxsize=1024)  # the connections of a server are few beside its calls
def _port_of(peer: str) -> int:
    """The last part of an address such as `ipv4:10.0.0.1:50000`, if there is one."""
    family, _, address = peer.partition(":")
    port = address.rpartition(":")[2]
    return int(port) if family != "unix" and port.isdecimal() else ON_THIS_MACHINE


def _own_sockets(port: int, paths: Collection[str]) -> Iterator[tuple[int, socket.socket]]:
    """The descriptor and a duplicate of each socket of this process with this local port or one of these paths."""
    with contextlib.suppress(OSError):  # no Linux
        for descriptor in map(int, os.listdir(OWN_FILES)):
            found = _duplicate(descriptor)
            if found is None:
                continue
            name = found.getsockname()
            if name in paths or (found.family in (socket.AF_INET, socket.AF_INET6) and name[1] == port):
                yield descriptor, found
            else:
                found.close()


def _duplicate(descriptor: int) -> socket.socket | None:
    """A duplicate of a socket, so that nothing happens to another file if it is closed meanwhile."""
    try:
        if not os.readlink(f"{OWN_FILES}/{descriptor}").startswith("socket:"):
            return None
        duplicate = os.dup(descriptor)
    except OSError:  # closed meanwhile
        return None
    try:
        return socket.socket(fileno=duplicate)
    except OSError:  # closed meanwhile, and opened again as another file
        os.close(duplicate)
        return None


def _count_unsent(connection: socket.socket) -> int:
    """The number of bytes that the client's machine has not received yet (SIOCOUTQ)."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0])
