"""Serves metrics and health over HTTP, for Prometheus and for probes without gRPC: /metrics, /livez, /readyz.

/metrics/own is /metrics without the Triton names. The HTTP itself is that of uvicorn and h11, which are small and pure
Python. They have a thread and an event loop of their own, so that a busy server answers its probes.
"""

import asyncio
import gzip
import logging
import ssl
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.auth.certificates import Certificates
from server.auth.security import Security
from server.errors import Unauthenticated
from server.host.listening import BACKLOG, listen
from server.host.watched_files import WatchedFiles
from server.observability.triton_names import OwnNames

TIMEOUT_S = 10.0  # for a request with its response, and for a connection between two requests
STOP_S = 1  # for responses that are being sent when the server stops
TEXT = ("content-type", "text/plain; charset=utf-8")
METHODS = ("GET", "HEAD")
CERTIFIED = "certified"  # whether the client has shown a certificate

log = logging.getLogger("server")

Headers = list[tuple[str, str]]
Answer = tuple[int, Headers, bytes]  # status, headers, body


class HttpServer:
    """Serves from a thread of its own until `stop`."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        *,
        security: Security = Security(),  # noqa: B008  # it is frozen
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """Port 0 selects a free port. `ready` is called from the thread. Raises CannotListen."""
        sockets = listen(host, port, flag="--http-port")
        self.port: int = sockets[0].getsockname()[1]
        for name in ("uvicorn.error", "uvicorn.access"):  # errors of the application are logged there, not here
            logging.getLogger(name).disabled = True

        def protocol(*arguments: Any, **options: Any) -> "TimedProtocol":
            return TimedProtocol(*arguments, timeout_s=timeout_s, **options)

        self._application = Application(registry, ready, security)
        config = uvicorn.Config(
            self._application,
            http=protocol,  # type: ignore[arg-type]  # any callable that makes protocols will do
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_graceful_shutdown=STOP_S,
            ssl_context_factory=_tls(security.certificates) if security.certificates else None,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, args=(sockets,), name="http", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, finish responses, close all connections."""
        self._server.should_exit = True
        self._thread.join()
        self._application.close()

    def _serve(self, sockets: list[Any]) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._server.serve(sockets))


def _tls(certificates: WatchedFiles[Certificates]) -> Callable[..., ssl.SSLContext]:
    """Makes the context of the server. Each handshake uses the certificates of its time."""

    def use_current(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = certificates.value.context

    def make(*_: Any) -> ssl.SSLContext:
        context = certificates.value.context
        context.sni_callback = use_current
        return context

    return make


class TimedProtocol(H11Protocol):
    """Closes a connection whose next response is not complete in time: silent, slow to send, or slow to read.

    uvicorn limits only the time between two requests.
    """

    def __init__(self, *arguments: Any, timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timeout_s = timeout_s
        self._timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, CERTIFIED: bool(transport.get_extra_info("peercert"))}  # part of each scope
        self._restart(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timeout:
            self._timeout.cancel()
        super().connection_lost(error)

    def on_response_complete(self) -> None:
        self._restart(self.transport)
        super().on_response_complete()

    def _restart(self, transport: asyncio.Transport) -> None:
        if self._timeout:
            self._timeout.cancel()
        self._timeout = self.loop.call_later(self._timeout_s, transport.abort)


class Application:
    """The ASGI application. Metrics are collected one scrape at a time, in another thread than probes are answered."""

    def __init__(
        self,
        registry: CollectorRegistry,
        ready: Callable[[], bool],
        security: Security = Security(),  # noqa: B008
    ) -> None:
        self._ready = ready
        self._security = security
        self._metrics: dict[str, CollectorRegistry] = {"/metrics": registry, "/metrics/own": OwnNames(registry)}
        self._scrapes = ThreadPoolExecutor(1, thread_name_prefix="scrape")

    def close(self) -> None:
        """End the thread that collects metrics."""
        self._scrapes.shutdown(wait=False)

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        try:
            status, headers, body = await self._answer(scope)
        except Exception:
            log.exception("answering %s failed", scope["path"])
            status, headers, body = _text(500, "internal error; the log has the details")
        headers = [*headers, ("content-length", str(len(body)))]
        encoded = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Any) -> Answer:
        path = urlsplit(scope["path"]).path if "://" in scope["path"] else scope["path"]
        paths = (*self._metrics, "/livez", "/readyz")
        if path not in paths:
            return _text(404, f"paths: {', '.join(paths)}")
        if scope["method"] not in METHODS:
            status, headers, body = _text(405, f"methods: {', '.join(METHODS)}")
            return status, [*headers, ("allow", ", ".join(METHODS))], body
        if path == "/livez":
            return _text(200, "alive")
        if path == "/readyz":
            return _text(200, "ready") if self._ready() else _text(503, "not ready")
        if refusal := self._refusal(scope):
            return refusal
        return await asyncio.get_running_loop().run_in_executor(self._scrapes, _scrape, self._metrics[path], scope)

    def _refusal(self, scope: Any) -> Answer | None:
        """The answer to a client that may not read metrics."""
        certificates = self._security.certificates
        if certificates and certificates.value.client_ca and not scope["state"][CERTIFIED]:
            return _text(403, "expected a client certificate")
        values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        try:
            self._security.access.client("token" if self._security.with_metrics else "nothing", values)
        except Unauthenticated as error:
            status, headers, body = _text(401, str(error))
            return status, [*headers, ("www-authenticate", "Bearer")], body
        return None


def _scrape(registry: CollectorRegistry, scope: Any) -> Answer:
    """The metrics in the format that the headers of the request accept; `name[]` in the query selects samples."""
    accepted, encodings = _header(scope, b"accept"), _header(scope, b"accept-encoding")
    try:
        encoder, content_type = choose_encoder(accepted)
    except (TypeError, ValueError):  # a version that is not a number
        encoder, content_type = choose_encoder("")
    names = parse_qs(scope["query_string"].decode("latin-1")).get("name[]")
    selected: Collector = registry.restricted_registry(names) if names else registry
    headers, body = [("content-type", content_type)], encoder(selected)
    if gzip_accepted(encodings):
        headers, body = [*headers, ("content-encoding", "gzip")], gzip.compress(body)
    return 200, headers, body


def _header(scope: Any, name: bytes) -> str:
    """The values of a header, as one."""
    return ",".join(value.decode("latin-1") for found, value in scope["headers"] if found == name)


def _text(status: int, text: str) -> Answer:
    return status, [TEXT], f"{text}\n".encode()
