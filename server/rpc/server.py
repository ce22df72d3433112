"""The gRPC server: every service on one port."""

import math
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from protos.affinity_pb2_grpc import add_AffinityServicer_to_server
from server.admission.in_flight import InFlight
from server.auth.security import Security
from server.config.settings import Settings
from server.host.unix_socket import UnixSocket
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.affinity.servicer import AffinityService
from server.rpc.calls.authentication import Authentication
from server.rpc.calls.interceptors import CallInterceptor
from server.rpc.calls.rates import CallerRates
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.open_inference.servicer import OpenInferenceService, add_open_inference_to_server
from server.rpc.ports import add_ports, add_unix_sockets
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
NO_LIMIT = 2**31 - 1  # of an option of gRPC
HANDSHAKE_TIMEOUT_MS = 10_000  # for TLS and the first frame of HTTP/2
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 60_000, 20_000  # detects clients that vanish without closing the connection


def build_server(
    settings: Settings,
    repository: Repository,
    metrics: Metrics,
    health: Health,
    in_flight: InFlight,
    connections: Connections,
    security: Security = Security(),  # noqa: B008  # it is frozen
    unix_sockets: Sequence[UnixSocket] = (),
) -> tuple[grpc.aio.Server, int]:
    """A server that listens once it is started, and its port. Raises CannotListen."""
    rates = CallerRates(settings.max_requests_per_second)
    interceptor = call_interceptor(settings, metrics, in_flight, connections, rates, security)
    server = grpc.aio.server(interceptors=(interceptor,), options=_options(settings))
    add_services(server, settings, repository, metrics, health, in_flight, rates)
    enable_reflection(server)
    connections.port = add_ports(server, settings.host, settings.port, security.certificates)
    connections.encrypted = security.certificates is not None
    connections.paths = add_unix_sockets(server, unix_sockets)
    return server, connections.port


def call_interceptor(
    settings: Settings,
    metrics: Metrics,
    in_flight: InFlight,
    connections: Connections,
    rates: CallerRates,
    security: Security,
) -> CallInterceptor:
    """The interceptor of every call."""
    return CallInterceptor(
        metrics,
        in_flight,
        connections,
        tracked_paths=TRACKED_PATHS,
        slow_client_seconds=settings.slow_client_seconds,
        rates=rates,
        authentication=Authentication(security.access, with_reflection=security.with_reflection),
    )


def add_services(
    server: Any,
    settings: Settings,
    repository: Repository,
    metrics: Metrics,
    health: Health,
    in_flight: InFlight,
    rates: CallerRates,
) -> None:
    """Add the services that answer requests, and health."""
    add_AffinityServicer_to_server(AffinityService(repository, metrics), server)
    add_open_inference_to_server(OpenInferenceService(settings, repository, metrics, in_flight, rates), server)
    add_HealthServicer_to_server(health, server)


def _options(settings: Settings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_mb * 2**20),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.server_max_unrequested_time_in_server", NO_LIMIT),  # gRPC cancels calls that wait longer to be accepted
        ("grpc.max_send_message_length", -1),  # responses are bounded where they are built (MAX_RESPONSE_LOGITS)
        ("grpc.so_reuseport", 0),  # otherwise a second server could share the port and get half of the requests
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # keepalive pings wait for 60 s without it
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),  # no limit: otherwise clients that ping every 10 s are disconnected
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_seconds)),
        ("grpc.max_connection_age_grace_ms", _milliseconds(settings.max_connection_age_grace_seconds)),
    ]


def _milliseconds(seconds: float) -> int:
    """A time for an option of gRPC; 0 means no limit."""
    return min(math.ceil(seconds * 1000), NO_LIMIT) if seconds else NO_LIMIT
