"""`python -m tests.bench.probes`: many probes of a running server at the same moment, each over its own connection."""

import asyncio
import statistics
import time
from collections.abc import Sequence

from tests.bench import options

DEFAULT_SERVER = "127.0.0.1:8002"
TIMEOUT_S = 60.0


async def probe(host: str, port: int, path: str, start: float) -> float:
    """Seconds from the start to the response. Raises ValueError unless it is 200."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        response = await reader.read()
    finally:
        writer.close()
    if not response.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"found {response[:40]!r}, expected 200")
    return time.perf_counter() - start


async def probes(host: str, port: int, path: str, count: int) -> list[float]:
    """The seconds of each of `count` simultaneous probes, in ascending order."""
    start = time.perf_counter()
    async with asyncio.timeout(TIMEOUT_S):
        return sorted(await asyncio.gather(*(probe(host, port, path, start) for _ in range(count))))


def main(argv: Sequence[str] | None = None) -> None:
    parser = options.parser("probes", __doc__)
    parser.add_argument("--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help=f"({DEFAULT_SERVER})")
    parser.add_argument("--path", default="/livez", help="(/livez)")
    parser.add_argument("--count", type=int, default=500, help="simultaneous probes (500)")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    arguments = parser.parse_args(argv)
    host, _, port = arguments.server.rpartition(":")
    for _ in range(arguments.rounds):
        seconds = asyncio.run(probes(host.strip("[]"), int(port), arguments.path, arguments.count))
        median, last = statistics.median(seconds) * 1e3, seconds[-1] * 1e3
        print(f"{len(seconds)} probes of {arguments.path}: median {median:.0f} ms, last {last:.0f} ms", flush=True)


if __name__ == "__main__":
    main()
