"""`python -m server`: load the models, answer until Ctrl-C or SIGTERM, let what is under way finish, end."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import prometheus_client
import uvloop

from server.admission.in_flight import InFlight
from server.config.cli import parse
from server.config.settings import Settings
from server.errors import AffinityError
from server.observability import logs
from server.observability.http import HttpServer
from server.observability.observer import Observer
from server.observability.prometheus import Metrics
from server.repository.gauges import ModelMetrics
from server.repository.listener import RepositoryListener
from server.repository.repository import Repository
from server.rpc.health import Health
from server.rpc.server import build_server
from server.tasks.registry import TASKS

STOPPING = "the server is stopping; ask another one, or come back later"
LAST_WORDS_S = 1.0  # for the last answers to leave, and for streams that wait for their client

EXAMPLE_IMAGE = Path("models/pretrained/vit-digits/example.png")

log = logging.getLogger("server")


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 after a stop that was asked for, 1 if the server could not start."""
    settings = parse(argv, os.environ)
    logs.configure(settings.log_level, settings.log_format)
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # when a counter was made: no use
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except AffinityError as error:
        log.error("%s", error)
        return 1
    return 0


async def serve(settings: Settings) -> None:
    """Start everything, wait to be stopped, stop everything. Ports are taken before models are loaded."""
    signals, metrics, health, in_flight = Signals(), Metrics(), Health(), InFlight(STOPPING)
    repository = Repository(settings, Reporter(health, metrics))
    metrics.registry.register(ModelMetrics(repository.models))
    async with AsyncExitStack() as stack:  # ends what has been started, the last first
        http = HttpServer(
            settings.host, settings.http_port, metrics.registry, lambda: repository.ready and not in_flight.closed
        )
        stack.callback(http.stop)
        stack.push_async_callback(repository.drain)
        server, port = build_server(settings, repository, metrics, health, in_flight)
        stack.push_async_callback(server.stop, None)
        await health.refresh(repository)
        await server.start()
        if await signals.unless_stopped(repository.load_all()):
            _say_ready(settings, repository, port, http.port)
            await signals.stop.wait()
        await _finish(settings, server, repository, health, in_flight)


class Reporter(RepositoryListener):
    """Reports what happens to the models to the health service and the metrics."""

    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health, self._metrics = health, metrics

    def observer(self, name: str, version: str) -> Observer:
        return self._metrics.observe(name, version)

    async def changed(self, repository: Repository) -> None:
        await self._health.refresh(repository)

    def gone(self, name: str, version: str) -> None:
        self._metrics.forget(name, version)


class Signals:
    """Ctrl-C and SIGTERM: the first asks to stop, the second ends the process at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._came, number)

    def _came(self, number: int) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        self.stop.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Do the work, and say whether it was done: False if the server was asked to stop before."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self.stop.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True


async def _finish(
    settings: Settings, server: grpc.aio.Server, repository: Repository, health: Health, in_flight: InFlight
) -> None:
    """Refuse what comes, let what is under way end; what takes too long ends with what it has."""
    log.info("stopping: %d requests under way have %g s; Ctrl-C ends at once", in_flight.count, settings.drain_seconds)
    in_flight.close()
    await health.stop()
    if not await in_flight.wait_idle(settings.drain_seconds):
        log.warning("%d requests took longer and are cut off", in_flight.count)
        repository.abort()
    await server.stop(LAST_WORDS_S)
    log.info("stopped")


def _say_ready(settings: Settings, repository: Repository, port: int, http_port: int) -> None:
    tasks = {model.name: model.artifact.manifest.task for model in repository.models()}
    log.info(
        "ready: %s; gRPC on %s:%d, metrics and health on http://%s:%d",
        ", ".join(f"{name} ({task})" for name, task in sorted(tasks.items())),
        settings.host,
        port,
        settings.host,
        http_port,
    )
    if settings.log_format == "text":
        print("\n".join(("try, in another terminal:", *_examples(set(tasks.values()), port), "")), flush=True)


def _examples(tasks: set[str], port: int) -> list[str]:
    """Up to three commands that the models served can answer."""
    image = EXAMPLE_IMAGE if EXAMPLE_IMAGE.exists() else "some.png"
    server = "" if port == Settings.port else f" --server 127.0.0.1:{port}"
    commands = [spec.example.format(image=image) for name, spec in TASKS.items() if name in tasks]
    return [f"  {_python()} -m server.client{server} {command}" for command in commands[:3]]


def _python() -> str:
    """How this Python is called from the current directory: as python, if it is not one that lies there."""
    python = Path(sys.executable)
    return str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else "python"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
