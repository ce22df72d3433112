"""HTTP/2 frames (RFC 9113), for tests that look at a connection between a gRPC client and the server."""

import asyncio
import contextlib
from collections.abc import Callable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_SIZE = 9  # length (3 bytes), type, flags, stream (4 bytes)
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK = 1  # flag of SETTINGS and PING
END_STREAM, END_HEADERS = 1, 4  # flags of DATA and HEADERS


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """The bytes of one frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class FrameReader:
    """Calls `on_frame(kind, flags, payload)` for each whole frame of the bytes that it is fed."""

    def __init__(self, on_frame: Callable[[int, int, bytes], None], *, skip: int = 0) -> None:
        """`skip`: the number of bytes before the first frame."""
        self._on_frame, self._skip, self._buffer = on_frame, skip, b""

    def feed(self, data: bytes) -> None:
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._buffer += data[skipped:]
        while len(self._buffer) >= HEADER_SIZE:
            end = HEADER_SIZE + int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < end:
                return
            whole, self._buffer = self._buffer[:end], self._buffer[end:]
            self._on_frame(whole[3], whole[4], whole[HEADER_SIZE:])


@contextlib.asynccontextmanager
async def relay(port: int, *, from_client=lambda *frame: None, from_server=lambda *frame: None):
    """The port of a TCP relay to `port`, which shows the frames of both directions to the functions."""

    connections: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader, writer, frames: FrameReader) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                frames.feed(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def connect(client_reader, client_writer) -> None:
        connections.add(asyncio.current_task())
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((client_writer, server_writer))
        await asyncio.gather(
            copy(client_reader, server_writer, FrameReader(from_client, skip=len(PREFACE))),
            copy(server_reader, client_writer, FrameReader(from_server)),
        )

    listener = await asyncio.start_server(connect, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*connections)
