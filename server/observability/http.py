"""Serves metrics and health over HTTP, for Prometheus and for probes without gRPC: /metrics, /livez, /readyz.

/metrics/own is /metrics without the Triton names.
"""

import os
import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from server.errors import AffinityError
from server.observability.triton_names import OwnNames


class HttpPortTaken(AffinityError):
    """The HTTP port cannot be bound."""


class _Server(ThreadingMixIn, WSGIServer):
    """Uses one thread for each request, so that a slow client does not delay a probe."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: probes arrive every few seconds."""


class HttpServer:
    """Serves in its own threads until `stop`, so that a busy event loop does not fail the probes."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        """Port 0 selects a free port. `ready` is called from other threads. Raises HttpPortTaken."""
        try:
            self._server = make_server(host, port, _application(registry, ready), _Server, _Quiet)
        except OSError as error:
            raise HttpPortTaken(
                f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; --http-port chooses another"
            ) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _application(registry: CollectorRegistry, ready: Callable[[], bool]) -> Any:
    metrics = {"/metrics": make_wsgi_app(registry), "/metrics/own": make_wsgi_app(OwnNames(registry))}

    def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path in metrics:
            return metrics[path](environ, start_response)  # type: ignore[no-any-return]
        if path == "/livez":
            return _respond(start_response, "200 OK", "alive")
        if path == "/readyz":
            return _respond(
                start_response, *(("200 OK", "ready") if ready() else ("503 Service Unavailable", "not ready"))
            )
        return _respond(start_response, "404 Not Found", "paths: /metrics, /metrics/own, /livez, /readyz")

    return application


def _respond(start_response: Any, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
