"""Metrics and health over HTTP, for Prometheus and probes that do not speak gRPC: /metrics, /livez, /readyz.

/metrics/own is /metrics without Triton's names.
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
    """A port that cannot be listened on."""


class _Server(ThreadingMixIn, WSGIServer):
    """One thread a request, so that a slow reader does not keep a probe waiting."""

    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Probes come every few seconds: nobody wants to read of each."""


class HttpServer:
    """Answers in threads of its own until `stop`: a busy event loop does not make the server look dead."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        """`ready` is called from other threads. HttpPortTaken if the port cannot be had; 0 takes any."""
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
            return _say(start_response, "200 OK", "alive")
        if path == "/readyz":
            return _say(start_response, *(("200 OK", "ready") if ready() else ("503 Service Unavailable", "not ready")))
        return _say(start_response, "404 Not Found", "here are /metrics, /metrics/own, /livez and /readyz")

    return application


def _say(start_response: Any, status: str, text: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
