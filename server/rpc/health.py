"""grpc.health.v1: whether the server, each service and each model answers. Kubernetes, Envoy and gRPC's clients ask."""

from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from server.repository import Repository
from server.rpc.services import OPEN_INFERENCE, TYPED

SERVICES = ("", OPEN_INFERENCE, TYPED)
MODEL = "model/"  # before a model's name

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Tells what the repository says. `refresh` after models came or went, `stop` when the server is asked to end."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._servicer: Any = aio.HealthServicer()

    async def refresh(self) -> None:
        """Set the status of every service and model."""
        ready = SERVING if self._repository.ready else NOT_SERVING
        states = dict.fromkeys(SERVICES, ready)
        for entry in self._repository.index():
            serves = entry.state == "READY" or states.get(MODEL + entry.name) == SERVING  # any version of it
            states[MODEL + entry.name] = SERVING if serves else NOT_SERVING
        for service, status in states.items():
            await self._servicer.set(service, status)

    async def stop(self) -> None:
        """NOT_SERVING from now on, for all of them."""
        await self._servicer.enter_graceful_shutdown()

    def add_to(self, server: Any) -> None:
        add_HealthServicer_to_server(self._servicer, server)
