"""Deploys under load: do calls fail? `python -m tests.bench.rolling`.

1. Rolling restarts of two replicas behind round_robin: each is sent SIGTERM, started again, and has to answer calls
   before the other one's turn comes.
2. New versions of every model, which a polling server finds, loads and serves instead of the old ones.

The callers use the shipped client with its retries, and send the next call when the last one is answered. Exits with an
error if a call fails, or if there were too few calls to show anything.
"""

import argparse
import asyncio
import re
import shutil
import signal
import ssl
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from server.client import AsyncClient, CallFailed, Tls
from tests.artifacts import next_version
from tests.bench import options
from tests.certificates import Authority
from tests.serving import Served, own_address, served

UNHURRIED = ("--set", "*.max_queue_seconds=600", "--drain-seconds", "600")  # a busy machine takes its time
TIMEOUT_S = 600.0  # of a call, and of each step
POLL_S = 0.5
NAME = "replicas.example"  # in the certificate of both
ANSWERED = re.compile(r'^grpc_server_handled_total\{grpc_code="OK",grpc_method="(FillMask|Generate)".*\} (\S+)$', re.M)


class Load:
    """Callers that send calls without a pause, and what became of the calls."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()  # by task
        self.versions: Counter[tuple[str, str]] = Counter()  # by model and version, of generated texts
        self.failed: Counter[str] = Counter()  # by status and text
        self.longest_s = 0.0

    @asynccontextmanager
    async def on(self, server: str, *, callers: int, tls: Tls | None = None):
        """Call the server during the block. Calls that have begun are finished."""
        stop = asyncio.Event()
        async with AsyncClient(server, timeout_s=TIMEOUT_S, tls=tls) as client:
            running = [asyncio.create_task(self._call_until(stop, client)) for _ in range(callers)]
            try:
                yield
            finally:
                stop.set()
                await asyncio.gather(*running)

    async def _call_until(self, stop: asyncio.Event, client: AsyncClient) -> None:
        while not stop.is_set():
            await self._count("fill-mask", self._fill_mask, client)
            await self._count("generate", self._generate, client)

    async def _count(self, task: str, call: Callable[[AsyncClient], Awaitable[None]], client: AsyncClient) -> None:
        started = time.perf_counter()
        try:
            await call(client)
            self.answered[task] += 1
        except CallFailed as error:
            self.failed[f"{task}: {error.code.name}: {error}"] += 1
        self.longest_s = max(self.longest_s, time.perf_counter() - started)

    async def _fill_mask(self, client: AsyncClient) -> None:
        [text] = await client.fill_mask(["The [MASK] statement raises an exception."])
        assert len(text.masks) == 1

    async def _generate(self, client: AsyncClient) -> None:
        parts = [part async for part in client.generate("A list is", max_tokens=8, ignore_eos=True)]
        assert parts[-1].usage.completion_tokens == 8, "a text was cut short"
        self.versions[parts[-1].model, parts[-1].model_version] += 1

    def report(self, what: str) -> str:
        tasks = ", ".join(f"{count:,} {task}" for task, count in self.answered.items())
        lines = [
            f"{what}: {self.answered.total():,} calls answered ({tasks}), {self.failed.total():,} failed; "
            f"the longest took {self.longest_s:.1f} s"
        ]
        return "\n".join([*lines, *(f"  {count} × {text}" for text, count in self.failed.most_common(10))])


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, which is evaluated in a thread."""
    async with asyncio.timeout(TIMEOUT_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


# ---- rolling restarts


class Replica:
    """A server process that can be started again on the same ports."""

    def __init__(self, artifacts: Path, host: str, flags: list[str], tls: Tls | None) -> None:
        self._artifacts, self._host, self._flags, self._tls = artifacts, host, flags, tls
        self._process = ExitStack()
        self._ports = ["--port", "0", "--http-port", "0"]
        self.served: Served

    @property
    def address(self) -> str:
        return f"{self._host}:{self.served.port}"

    async def start(self) -> None:
        flags = ["--host", self._host, *self._ports, *UNHURRIED, *self._flags]
        self.served = await asyncio.to_thread(self._process.enter_context, served(self._artifacts, *flags))
        self._ports = ["--port", str(self.served.port), "--http-port", str(self.served.http_port)]

    async def stop(self) -> None:
        self.served.process.send_signal(signal.SIGTERM)
        log, _ = await asyncio.to_thread(self.served.process.communicate, timeout=TIMEOUT_S)
        assert self.served.process.returncode == 0, log

    async def close(self) -> None:
        await asyncio.to_thread(self._process.close)

    def answers(self) -> bool:
        """Whether it has answered calls since its start."""
        trusted = ssl.create_default_context(cafile=self._tls.ca) if self._tls else None
        url = f"{'https' if self._tls else 'http'}://{self._host}:{self.served.http_port}/metrics"
        with urllib.request.urlopen(url, timeout=60, context=trusted) as response:
            return any(float(count) for _, count in ANSWERED.findall(response.read().decode()))


async def restart_replicas(
    artifacts: Path, *, restarts: int, calls: int, callers: int, flags: list[str], encrypted: bool
) -> Load:
    """Restart two replicas in turn, as often as asked and until there were enough calls."""
    load, host, tls = Load(), own_address(), None
    async with AsyncExitStack() as stack:
        if encrypted:
            authority = Authority(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            certificate, key = authority.sign("server", names=(host, NAME))
            flags, tls = (
                [*flags, "--tls-cert", str(certificate), "--tls-key", str(key)],
                Tls(authority.certificate, server_name=NAME),
            )
        replicas = [Replica(artifacts, host, flags, tls) for _ in range(2)]
        for replica in replicas:
            stack.push_async_callback(replica.close)
        await asyncio.gather(*(replica.start() for replica in replicas))
        async with load.on(",".join(replica.address for replica in replicas), callers=callers, tls=tls):
            for _ in range(restarts):
                for replica in replicas:
                    await until(replica.answers)
                    await replica.stop()
                    await replica.start()
            await until(lambda: all(replica.answers() for replica in replicas))
            await until(lambda: load.answered.total() + load.failed.total() >= calls)
    return load


# ---- new versions


async def roll_out_versions(artifacts: Path, *, versions: int, calls: int, callers: int, flags: list[str]) -> Load:
    """Add versions of all models to the directory of a polling server, one when the one before is served."""
    load = Load()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "artifacts"
        shutil.copytree(artifacts, root, ignore=shutil.ignore_patterns(".*"))
        models = sorted(path.name for path in root.iterdir())
        with served(root, "--poll-artifacts", str(POLL_S), *UNHURRIED, *flags) as running:
            async with load.on(running.target, callers=callers):
                await until(load.answered.total)
                for _ in range(versions):
                    added = [await asyncio.to_thread(next_version, root, model) for model in models]
                    newest = {(directory.parent.name, directory.name) for directory in added}
                    await until(lambda: newest & load.versions.keys())  # noqa: B023  # it is used at once
                await until(lambda: load.answered.total() + load.failed.total() >= calls)
                async with AsyncClient(running.target) as client:
                    served_now = {(model.name, model.version) for model in await client.models() if model.task}
            assert served_now == newest, f"found {served_now}, expected {newest}"
    return load


async def main(given: argparse.Namespace) -> int:
    flags = ["--shutdown-delay-seconds", str(given.shutdown_delay_seconds)]
    loads = {
        f"{given.restarts} rolling restarts of 2 replicas{' with TLS' * given.tls}": await restart_replicas(
            given.artifacts,
            restarts=given.restarts,
            calls=given.calls,
            callers=given.callers,
            flags=flags,
            encrypted=given.tls,
        ),
        f"{given.versions} new versions of each model": await roll_out_versions(
            given.artifacts, versions=given.versions, calls=given.calls, callers=given.callers, flags=[]
        ),
    }
    print("\n".join(load.report(what) for what, load in loads.items()))
    return int(any(load.failed for load in loads.values()))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = options.parser("rolling", __doc__)
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="exported models (artifacts)")
    parser.add_argument("--restarts", type=int, default=5, help="of both replicas, one after the other (5)")
    parser.add_argument("--versions", type=int, default=5, help="to roll out by polling (5)")
    parser.add_argument("--calls", type=int, default=5000, help="at least so many calls in each part (5000)")
    parser.add_argument("--callers", type=int, default=8, help="that call at the same time (8)")
    parser.add_argument("--tls", action="store_true", help="restart replicas with TLS")
    parser.add_argument("--shutdown-delay-seconds", type=float, default=0.0, help="of the replicas (0)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(asyncio.run(main(parse(sys.argv[1:]))))
