"""One replica of one model: the services of the server, without a port."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry

from server.admission.in_flight import InFlight
from server.auth.security import Security
from server.config.settings import Settings
from server.config.version_policy import Versions
from server.errors import NotReady
from server.observability.prometheus import Metrics
from server.repository.gauges import ModelMetrics
from server.repository.repository import Repository
from server.repository.selection import select
from server.rpc.calls.rates import CallerRates
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.local_server import IncomingCall, LocalServer, Reply
from server.rpc.server import add_services, call_interceptor
from server.serving import STOPPING, Reporter

VERSIONS = "versions"  # key of the user_config of Ray Serve

ExportMetrics = Callable[[CollectorRegistry], Awaitable[None]]


class ModelReplica:
    """Serves the model that the settings name. `reconfigure` loads it."""

    def __init__(self, settings: Settings, export_metrics: ExportMetrics) -> None:
        """`export_metrics` runs for as long as the replica."""
        [self._name] = settings.models
        self._settings = settings
        self._metrics, self._health, self._in_flight = Metrics(), Health(), InFlight(STOPPING)
        self._export_metrics = export_metrics
        self._repository: Repository | None = None
        self._server = LocalServer(())
        self._exporting: asyncio.Future[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve the versions of `user_config`. If one fails to load, nothing changes, and the error is raised."""
        settings = with_versions(self._settings, self._name, str(user_config[VERSIONS]))
        if self._repository is None:
            await self._start(settings)
        else:
            await self._repository.update(self._name, select(settings, self._name), keep=())

    async def _start(self, settings: Settings) -> None:
        repository = Repository(settings, Reporter(self._health, self._metrics))
        rates = CallerRates(settings.max_requests_per_second)
        server = LocalServer(
            (call_interceptor(settings, self._metrics, self._in_flight, Connections(), rates, Security()),)
        )
        add_services(server, settings, repository, self._metrics, self._health, self._in_flight, rates)
        await repository.load_all()
        self._metrics.registry.register(ModelMetrics(repository.models, repository.failures))
        self._repository, self._server = repository, server
        self._exporting = asyncio.ensure_future(self._export_metrics(self._metrics.registry))

    def check_health(self) -> None:
        """Ray Serve calls this again and again, and replaces a replica for which it fails. Raises NotReady."""
        if self._repository is None or not self._repository.ready:
            raise NotReady(f"model {self._name} is not loaded")

    async def unary(self, call: IncomingCall, message: bytes) -> Reply:
        """The response to a call, or its error."""
        return await self._server.unary(call, message)

    async def stream(self, call: IncomingCall, message: bytes) -> AsyncGenerator[Reply, None]:
        """The responses to one message. An error is the last reply."""
        async for reply in self._server.stream(call, _one(message)):
            yield reply


def with_versions(settings: Settings, name: str, versions: str) -> Settings:
    """The settings, with these versions of the model."""
    own = {**settings.overrides.get(name, {}), VERSIONS: Versions.parse(versions)}
    return replace(settings, overrides={**settings.overrides, name: own})


async def _one(message: bytes) -> AsyncIterator[bytes]:
    yield message
