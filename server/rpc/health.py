"""grpc.health.v1: the health of the server, of each service and of each model, for Kubernetes, Envoy and gRPC clients.

The servicer of grpcio-health-checking drops all watchers of a service when one of them disconnects, so the server has
its own.
"""
# ruff: noqa: N802  # methods have the names of the protocol

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from server.errors import ModelNotFound
from server.repository.listener import ServedModels
from server.rpc.calls.context import GrpcContext
from server.rpc.services import OPEN_INFERENCE, TYPED

SERVICES = ("", OPEN_INFERENCE, TYPED)
MODEL_PREFIX = "model/"  # the service of a model is this and its name

UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING


class Health(HealthServicer):  # type: ignore[misc]  # the library has no types
    """Reports the state of a repository: `refresh` after a change of its models, `stop` when the server stops."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = dict.fromkeys(SERVICES, NOT_SERVING)
        self._changed = asyncio.Condition()
        self._stopped = False

    async def refresh(self, served: ServedModels) -> None:
        """Set the state of every service and model, and notify the watchers."""
        serves = served.ready and not self._stopped
        states = dict.fromkeys(SERVICES, SERVING if serves else NOT_SERVING)
        states |= {MODEL_PREFIX + name: NOT_SERVING for name in served.names()}
        if not self._stopped:
            states |= {MODEL_PREFIX + model.name: SERVING for model in served.models()}
        await self._publish(states)

    async def stop(self) -> None:
        """Report every service and model as not serving from now on."""
        self._stopped = True
        await self._publish(dict.fromkeys(self._states, NOT_SERVING))

    async def _publish(self, states: dict[str, Any]) -> None:
        async with self._changed:
            self._states = states
            self._changed.notify_all()

    async def Check(self, request: HealthCheckRequest, context: GrpcContext) -> HealthCheckResponse:
        if request.service not in self._states:
            known = ", ".join(map(repr, (*SERVICES, f"{MODEL_PREFIX}NAME")))  # no names: health needs no token
            raise ModelNotFound(f"service: found {request.service!r}, expected one of {known}")
        return HealthCheckResponse(status=self._states[request.service])

    async def Watch(
        self, request: HealthCheckRequest, context: GrpcContext
    ) -> AsyncGenerator[HealthCheckResponse, None]:
        """Yield the current state, and each new state when it changes."""
        sent: Any = None
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._states.get(request.service, UNKNOWN) != sent)  # noqa: B023
            sent = self._states.get(request.service, UNKNOWN)
            yield HealthCheckResponse(status=sent)
