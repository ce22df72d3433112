"""Callers of one unary gRPC method that take little CPU, so that the server is what a closed loop measures.

Each caller has an HTTP/2 connection of its own and one call in flight; one thread serves them all. gRPC's own client
would take as much CPU for a call as the server that answers it. Requests must fit into one frame, and failed calls are
errors: they are told apart by the message that they lack, so that no headers are decoded.
"""

import selectors
import socket
import struct
import time
from collections.abc import Sequence

from tests.frames import ACK, DATA, END_HEADERS, END_STREAM, HEADER_SIZE, HEADERS, PING, PREFACE, SETTINGS, frame

RST_STREAM, GOAWAY, WINDOW_UPDATE = 3, 7, 8
LARGEST_WINDOW, FIRST_WINDOW = 2**31 - 1, 2**16 - 1  # bytes that a server may send; no caller ever updates it
INITIAL_WINDOW_SIZE = 4  # the setting of that for each stream
MAX_FRAME_BYTES = 2**14
TIMEOUT_S = 60


class Caller:
    """One client of a server. It sends its next request when the last one is answered."""

    def __init__(self, address: tuple[str, int], path: str, messages: Sequence[bytes], first: int) -> None:
        """Begins with the message number `first`, and takes them in turn."""
        self.answered = 0
        self.socket = socket.create_connection(address, TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = [_request(path, message) for message in messages]
        self._number, self._stream = first, 1
        self._buffer, self._has_message = b"", False
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW)
        window = struct.pack(">I", LARGEST_WINDOW - FIRST_WINDOW)
        self.socket.sendall(PREFACE + frame(SETTINGS, settings) + frame(WINDOW_UPDATE, window))

    def send(self) -> None:
        """Send the next request."""
        headers, data = self._requests[self._number % len(self._requests)]
        stream = self._stream.to_bytes(4, "big")
        self.socket.sendall(b"".join((headers[:5], stream, headers[9:], data[:5], stream, data[9:])))
        self._number, self._stream, self._has_message = self._number + 1, self._stream + 2, False

    def receive(self) -> bool:
        """Read what has come. Returns whether the call is answered; RuntimeError if it failed."""
        received = self.socket.recv(1 << 16)
        if not received:
            raise RuntimeError("the server closed a connection")
        buffer, start, ended = self._buffer + received, 0, False
        while len(buffer) >= start + HEADER_SIZE:
            end = start + HEADER_SIZE + int.from_bytes(buffer[start : start + 3], "big")
            if len(buffer) < end:
                break
            ended |= self._take(buffer[start + 3], buffer[start + 4], buffer[start + HEADER_SIZE : end])
            start = end
        self._buffer = buffer[start:]
        self.answered += ended
        return ended

    def _take(self, kind: int, flags: int, payload: bytes) -> bool:
        """Handle a frame. Returns whether it ends the call."""
        if kind == DATA:
            self._has_message = True
        elif kind == HEADERS and flags & END_STREAM:
            if not self._has_message:
                raise RuntimeError("a call failed: its answer has no message")
            return True
        elif kind in (SETTINGS, PING) and not flags & ACK:
            self.socket.sendall(frame(kind, payload if kind == PING else b"", flags=ACK))
        elif kind in (RST_STREAM, GOAWAY):
            raise RuntimeError(f"the server ended a call or a connection: {payload!r}")
        return False


def closed_loop(
    address: tuple[str, int], path: str, messages: Sequence[bytes], *, callers: int, seconds: float
) -> tuple[int, float]:
    """The number of calls that were answered, and the seconds that it took, after a first call of each caller."""
    everyone = [Caller(address, path, messages, number) for number in range(callers)]
    with selectors.DefaultSelector() as selector:
        try:
            for caller in everyone:
                caller.send()
                while not caller.receive():
                    pass
                caller.answered = 0
                selector.register(caller.socket, selectors.EVENT_READ, caller)
            started = now = time.perf_counter()
            for caller in everyone:
                caller.send()
            while now < started + seconds:
                ready = selector.select(TIMEOUT_S)
                if not ready:
                    raise RuntimeError(f"no call was answered for {TIMEOUT_S} s")
                for key, _ in ready:
                    if key.data.receive():
                        key.data.send()
                now = time.perf_counter()
            return sum(caller.answered for caller in everyone), now - started
        finally:
            for caller in everyone:
                caller.socket.close()


def _request(path: str, message: bytes) -> tuple[bytes, bytes]:
    """The frames of a call, with a stream of 0: headers that use no table, and the message."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        "grpc-timeout": f"{TIMEOUT_S}S",
    }
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
    body = b"\0" + struct.pack(">I", len(message)) + message
    assert len(body) <= MAX_FRAME_BYTES, f"found a request of {len(body)} bytes, expected one that fits into a frame"
    return frame(HEADERS, block, flags=END_HEADERS), frame(DATA, body, flags=END_STREAM)


def _text(text: str) -> bytes:
    """A string without compression (RFC 7541, 5.2)."""
    assert len(text) < 127, f"found {len(text)} characters, expected fewer than 127"
    return bytes((len(text),)) + text.encode("ascii")
