"""The gRPC server: every service on one port."""

import os
import socket
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from protos.affinity_pb2_grpc import add_AffinityServicer_to_server
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.errors import AffinityError
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.affinity.servicer import AffinityService
from server.rpc.health import Health
from server.rpc.interceptors import CallInterceptor
from server.rpc.open_inference.servicer import OpenInferenceService, add_open_inference_to_server
from server.rpc.reflection import enable_reflection
from server.rpc.services import OPEN_INFERENCE, TYPED

# Calls that must finish before the server stops. ModelStreamInfer is missing because it tracks its requests one by one.
TRACKED_PATHS = frozenset(
    (
        f"/{OPEN_INFERENCE}/ModelInfer",
        *(
            f"/{TYPED}/{method}"
            for method in ("FillMask", "Generate", "ClassifyImage", "ClassifyText", "Embed", "CountTokens")
        ),
    )
)
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000  # detects clients that vanish without closing the connection


class PortTaken(AffinityError):
    """The server cannot listen on the port."""


def build_server(
    settings: Settings, repository: Repository, metrics: Metrics, health: Health, in_flight: InFlight
) -> tuple[grpc.aio.Server, int]:
    """A server that listens once it is started, and its port. Raises PortTaken if the port is not available."""
    server = grpc.aio.server(
        interceptors=(CallInterceptor(metrics, in_flight, TRACKED_PATHS),), options=_options(settings)
    )
    add_AffinityServicer_to_server(AffinityService(repository, metrics), server)
    add_open_inference_to_server(OpenInferenceService(settings, repository, metrics, in_flight), server)
    add_HealthServicer_to_server(health, server)
    enable_reflection(server)
    _check_port(settings.host, settings.port)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return server, server.add_insecure_port(f"{host}:{settings.port}")


def _check_port(host: str, port: int) -> None:
    """Bind the port once before gRPC does, because gRPC writes its own lines to stderr if that fails."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise PortTaken(f"cannot listen on {host}:{port}: {reason}; --port chooses another") from error


def _options(settings: Settings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_mb * 2**20),
        ("grpc.max_send_message_length", -1),  # responses are bounded where they are built (MAX_LOGITS)
        ("grpc.so_reuseport", 0),  # otherwise a second server could share the port and get half of the requests
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # keepalive pings wait for 60 s without it
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # allows clients to ping idle connections
    ]
