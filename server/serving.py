"""Starts all parts of the server, serves until Ctrl-C or SIGTERM, drains, and stops the parts."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from server.admission.in_flight import InFlight
from server.auth.security import Security
from server.config.settings import Settings
from server.host.cpus import usable_cpus
from server.host.gpu import has_nvidia_gpu
from server.host.listening import WILDCARDS, is_local, with_port
from server.host.processor import read_processor
from server.host.standard_files import STDOUT
from server.host.unix_socket import SCHEME, UnixSocket
from server.observability.http import HttpServer
from server.observability.observer import Observer
from server.observability.prometheus import Metrics
from server.repository.gauges import ModelMetrics
from server.repository.listener import RepositoryListener, ServedModels
from server.repository.model import Model
from server.repository.poller import Poller
from server.repository.repository import Repository
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.server import build_server
from server.runtime.cuda import cuda_problem
from server.runtime.summary import Facts, summary
from server.tasks.registry import TASKS

STOPPING = "the server is stopping; retry later, or use another server"
GRACE_S = 1.0  # for aborted requests to end, unless their client is slow

DEFAULT_SERVER = with_port(Settings.host, Settings.port)  # of the client
EXAMPLE_IMAGE = Path("models/pretrained/vit-digits/example.png")

log = logging.getLogger("server")


async def serve(settings: Settings) -> None:
    """Start all parts, wait for a signal, stop them. Binds the ports before it loads the models."""
    signals, metrics, health, in_flight = Signals(), Metrics(), Health(), InFlight(STOPPING)
    repository = Repository(settings, Reporter(health, metrics))
    metrics.registry.register(ModelMetrics(repository.models, repository.failures))
    async with AsyncExitStack() as stack:  # stops the parts in reverse order of their start
        security = Security.open(settings, clients_changed=metrics.set_clients)
        stack.callback(asyncio.create_task(security.keep_fresh()).cancel)
        http = HttpServer(
            settings.host,
            settings.http_port,
            metrics.registry,
            lambda: repository.ready and not in_flight.closing,
            security=security,
        )
        stack.callback(http.stop)
        stack.push_async_callback(repository.drain)
        connections = Connections()
        unix_sockets = [UnixSocket(Path(address.removeprefix(SCHEME))) for address in settings.listen]
        for each in unix_sockets:
            stack.callback(each.remove)
        server, port = build_server(
            settings, repository, metrics, health, in_flight, connections, security, unix_sockets
        )
        stack.push_async_callback(server.stop, GRACE_S)
        _warn_of_unprotected_ports(settings)
        await health.refresh(repository)
        await server.start()
        poller = Poller(repository, settings) if settings.poll_artifacts else None
        if await signals.unless_stopped(_load(repository, poller)):
            _announce(settings, repository, port, http.port)
            await (signals.unless_stopped(poller.run()) if poller else signals.stop.wait())
            if settings.shutdown_delay_seconds:
                await _serve_on(settings.shutdown_delay_seconds, health, in_flight)
        await _drain(settings, connections, repository, health, in_flight)
    log.info("stopped")


async def _load(repository: Repository, poller: Poller | None) -> None:
    if poller:
        await poller.start()
    await repository.load_all()


class Reporter(RepositoryListener):
    """Reports changes of the models to the health service and the metrics."""

    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health, self._metrics = health, metrics

    def observer(self, name: str, version: str) -> Observer:
        return self._metrics.observe(name, version)

    async def changed(self, served: ServedModels) -> None:
        await self._health.refresh(served)

    def unloaded(self, name: str, version: str) -> None:
        self._metrics.forget(name, version)


class Signals:
    """Handles Ctrl-C and SIGTERM: the first requests a stop, the second exits at once."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._handle, number)

    def _handle(self, number: int) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        self.stop.set()

    async def unless_stopped(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Run the work. Returns False if a stop was requested before it finished."""
        task, stop = asyncio.create_task(work), asyncio.create_task(self.stop.wait())
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True


async def _serve_on(seconds: float, health: Health, in_flight: InFlight) -> None:
    """Report that the server is not ready, and serve for some seconds more, in which load balancers notice."""
    log.info("stopping: not ready from now on; requests are served for %g s more; Ctrl-C exits at once", seconds)
    in_flight.announce_close()
    await health.stop()
    await asyncio.sleep(seconds)


async def _drain(
    settings: Settings, connections: Connections, repository: Repository, health: Health, in_flight: InFlight
) -> None:
    """Send clients away and answer the requests in flight; abort those that exceed the drain time."""
    log.info(
        "stopping: %d requests in flight have %g s to finish; Ctrl-C exits at once",
        in_flight.count,
        settings.drain_seconds,
    )
    in_flight.close()
    connections.begin_stop()
    await health.stop()
    if not await connections.drain(in_flight, settings.drain_seconds):
        log.warning("aborting %d requests that did not finish in time", in_flight.count)
        repository.abort()
        await in_flight.wait_idle(GRACE_S)
    await connections.close()


def _warn_of_unprotected_ports(settings: Settings) -> None:
    """Warn of ports that other machines can reach, if the settings do not protect them."""
    dangers = []
    if not settings.tls_cert:
        dangers.append("requests are not encrypted without --tls-cert")
    if not (settings.auth_tokens or settings.tls_client_ca):
        dangers.append("every client may call without --auth-tokens")
    if dangers and not is_local(settings.host):
        log.warning("other machines can connect to %s: %s", settings.host, ", and ".join(dangers))


def _announce(settings: Settings, repository: Repository, port: int, http_port: int) -> None:
    tasks = {model.name: model.artifact.manifest.task for model in repository.models()}
    for address in settings.listen:
        log.info("gRPC listens on %s, too", address)
    log.info(
        "ready: %s; gRPC on %s, metrics and health on %s://%s",
        ", ".join(f"{name} ({task})" for name, task in sorted(tasks.items())),
        with_port(settings.host, port),
        "https" if settings.tls_cert else "http",
        with_port(settings.host, http_port),
    )
    line, is_warning = summary(_facts(settings, repository.models()))
    log.log(logging.WARNING if is_warning else logging.INFO, line)
    if settings.log_format == "text":
        lines = ("try, in another terminal:", *_examples(settings, set(tasks.values()), port), "", "")
        STDOUT.write("\n".join(lines))


def _facts(settings: Settings, models: Sequence[Model]) -> Facts:
    gpu_found = has_nvidia_gpu()
    providers = {model.provider for model in models}
    idle_gpu = gpu_found and settings.provider == "auto" and "cuda" not in providers
    return Facts(
        providers=providers,
        cpu=read_processor(),
        cpus=usable_cpus(),
        requested=settings.provider,
        devices=settings.device,
        gpu_found=gpu_found,
        cuda_problem=(cuda_problem(settings.device[0]) if idle_gpu else None) or "",
        openvino_installed=find_spec("onnxruntime_ep_openvino") is not None,
        only_fp32={
            model.name: model.artifact.manifest.task
            for model in models
            if {graph.precision for graph in model.artifact.graphs("cpu")} == {"fp32"}
        },
    )


def _target(host: str, port: int) -> str:
    """The address of this server for a client on the same machine."""
    return with_port("127.0.0.1" if host in WILDCARDS else host, port)


def _examples(settings: Settings, tasks: set[str], port: int) -> list[str]:
    """Up to three example commands for the tasks that are served."""
    image = EXAMPLE_IMAGE if EXAMPLE_IMAGE.exists() else "some.png"
    target = _target(settings.host, port)
    token = "AFFINITY_TOKEN=… " if settings.auth_tokens else ""
    server = "" if target == DEFAULT_SERVER else f" --server {target}"
    server += " --tls" if settings.tls_cert else ""
    commands = [spec.example.format(image=image) for name, spec in TASKS.items() if name in tasks]
    return [f"  {token}{_python()} -m server.client{server} {command}" for command in commands[:3]]


def _python() -> str:
    """The command for this Python: its relative path if it is below the current directory, else `python`."""
    python = Path(sys.executable)
    return str(python.relative_to(Path.cwd())) if python.is_relative_to(Path.cwd()) else "python"
