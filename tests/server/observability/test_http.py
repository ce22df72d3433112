"""The HTTP server as Prometheus, kubelet and curl use it, and as clients misuse it."""

import gzip
import http.client
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge

from server.host.listening import CannotListen
from server.observability.http import HttpServer
from tests.serving import own_address

PATIENCE_S = 30
PATHS = ("/metrics", "/metrics/own", "/livez", "/readyz")


def registry():
    found = CollectorRegistry(auto_describe=True)
    Gauge("affinity_size", "A size.", ["model"], registry=found).labels("a").set(3)
    Counter("affinity_requests", "Requests.", registry=found).inc(2)
    Gauge("nv_size", "Triton's.", registry=found).set(5)
    return found


@contextmanager
def serving(ready=lambda: True, host="127.0.0.1", **options):
    server = HttpServer(host, 0, registry(), ready, **options)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server():
    with serving(timeout_s=PATIENCE_S) as running:
        yield running


def request(server, path, method="GET", headers=(), body=None):
    """Status, headers and body of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body=body, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def exchange(server, data):
    """All that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as client:
        client.sendall(data)
        received = b""
        while chunk := client.recv(1 << 16):
            received += chunk
        return received


@pytest.mark.parametrize("path", PATHS)
def test_head_has_the_headers_of_get_and_no_body(server, path):
    status, headers, body = request(server, path)
    bare_status, bare_headers, nothing = request(server, path, "HEAD")
    assert (status, bare_status, nothing) == (200, 200, b"")
    for name in ("content-type", "content-length"):
        assert headers[name] == bare_headers[name]
    assert int(headers["content-length"]) == len(body)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_not_allowed(server, path, method):
    status, headers, body = request(server, path, method, body=b"x" * 1000)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert body == b"methods: GET, HEAD\n"


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/livez/x", "//livez", "/%00", "/../readyz", "*"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_other_paths_are_not_found(server, path, method):
    status, _, body = request(server, path, method)
    assert status == 404
    assert body == (b"" if method == "HEAD" else b"paths: /metrics, /metrics/own, /livez, /readyz\n")


def test_paths_may_have_a_query_an_origin_or_escapes(server):
    for path in ("/livez?verbose", "http://elsewhere/livez?x=1", "/live%7a"):
        assert request(server, path)[::2] == (200, b"alive\n")


def test_readiness_is_read_at_each_request():
    with serving(iter([False, True]).__next__) as server:
        assert request(server, "/readyz")[::2] == (503, b"not ready\n")
        assert request(server, "/readyz")[::2] == (200, b"ready\n")


def names(body):
    return {line.split(b"{")[0].split()[0].decode() for line in body.splitlines() if not line.startswith(b"#")}


@pytest.mark.parametrize(
    ("query", "everything", "own"),
    [
        ("", {"affinity_size", "affinity_requests_total", "nv_size"}, {"affinity_size", "affinity_requests_total"}),
        ("?name[]=affinity_size", {"affinity_size"}, {"affinity_size"}),
        ("?name%5B%5D=affinity_size&name%5B%5D=nv_size", {"affinity_size", "nv_size"}, {"affinity_size"}),
        ("?name[]=affinity_requests_total", {"affinity_requests_total"}, {"affinity_requests_total"}),
        ("?name[]=unknown", set(), set()),
        ("?name[]=%ff", set(), set()),
    ],
)
def test_names_in_the_query_select_metrics(server, query, everything, own):
    assert names(request(server, f"/metrics{query}")[2]) >= everything
    assert names(request(server, f"/metrics/own{query}")[2]) >= own
    if query:
        assert names(request(server, f"/metrics{query}")[2]) == everything
        assert names(request(server, f"/metrics/own{query}")[2]) == own
    assert not any(name.startswith("nv_") for name in names(request(server, f"/metrics/own{query}")[2]))


@pytest.mark.parametrize(
    ("accepted", "type_"),
    [
        ("*/*", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5", "application/openmetrics-text"),
        ("application/openmetrics-text;version=none", "text/plain; version=0.0.4"),
        ("text/plain;version=1.x", "text/plain; version=0.0.4"),
    ],
)
def test_the_format_is_one_that_the_client_accepts(server, accepted, type_):
    status, headers, body = request(server, "/metrics", headers={"accept": accepted})
    assert (status, headers["content-type"].startswith(type_)) == (200, True)
    assert body.endswith(b"# EOF\n") == ("openmetrics" in type_)


def test_metrics_are_compressed_for_clients_that_accept_it(server):
    _, headers, body = request(server, "/metrics/own", headers={"accept-encoding": "deflate, gzip;q=1.0"})
    assert headers["content-encoding"] == "gzip"
    assert gzip.decompress(body) == request(server, "/metrics/own")[2]


def test_a_connection_carries_many_requests(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    connection.connect()
    first = connection.sock
    for path in PATHS * 5:
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, bool(response.read())) == (200, True)
        assert connection.sock is first
    connection.close()


def test_pipelined_requests_are_answered_in_order(server):
    requests = [
        b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ]
    received = exchange(server, b"".join(requests))
    assert received.count(b"HTTP/1.1 200") == 2
    assert received.index(b"alive") < received.index(b"ready\n")


def test_old_clients_are_answered(server):
    assert exchange(server, b"GET /livez HTTP/1.0\r\n\r\n").endswith(b"\r\n\r\nalive\n")


def test_hundreds_of_simultaneous_probes_are_answered(server):
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S))
            for _ in range(500)
        ]
        for client in clients:
            client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert all(client.recv(1 << 16).startswith(b"HTTP/1.1 200") for client in clients)


def registry_of(collector):
    found = CollectorRegistry()
    found.register(collector)
    return found


def test_probes_are_answered_while_metrics_are_collected():
    collecting, proceed = threading.Event(), threading.Event()

    class Slow:
        def collect(self):
            collecting.set()
            assert proceed.wait(PATIENCE_S)
            return []

    server = HttpServer("127.0.0.1", 0, registry_of(Slow()), lambda: True)
    try:
        with ThreadPoolExecutor(1) as pool:
            scrape = pool.submit(request, server, "/metrics")
            assert collecting.wait(PATIENCE_S)
            assert request(server, "/livez")[0] == 200
            proceed.set()
            assert scrape.result(PATIENCE_S)[0] == 200
    finally:
        server.stop()


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /livez HT",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nx",
    ],
)
def test_a_connection_without_a_complete_request_is_closed(begun):
    with serving(timeout_s=0.2) as server:
        assert not b"".join(exchange_until_reset(server, begun)).startswith(b"HTTP/1.1 200")


def test_a_connection_without_a_further_request_is_closed():
    for timeout_s in (0.2, 2.0, 20.0):  # a busy machine may send the first request too late
        with serving(timeout_s=timeout_s) as server:
            received = b"".join(exchange_until_reset(server, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"))
        if received:
            break
    assert received.startswith(b"HTTP/1.1 200")


def exchange_until_reset(server, data):
    try:
        yield exchange(server, data)
    except ConnectionResetError:
        return


def test_a_client_that_does_not_read_is_disconnected():
    found = registry()
    big = Gauge("affinity_big", "Many.", ["number"], registry=found)
    for number in range(20_000):
        big.labels(f"{number:0100}").set(1)
    server = HttpServer("127.0.0.1", 0, found, lambda: True, timeout_s=1.0)
    try:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(PATIENCE_S)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            open_connections = server._server.server_state.connections
            deadline = time.monotonic() + PATIENCE_S
            while not open_connections and time.monotonic() < deadline:
                time.sleep(0.01)
            while open_connections and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not open_connections
    finally:
        server.stop()


@pytest.mark.parametrize(
    "nonsense",
    [b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET\r\n\r\n", b"GET /" + b"x" * 100_000],
)
def test_what_is_not_http_is_refused_and_leaves_no_line(server, nonsense, capfd):
    received = b"".join(exchange_until_reset(server, nonsense))
    assert not received or received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
    assert request(server, "/livez")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_request_for_an_upgrade_is_answered_without_it(server, capfd):
    headers = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-key": "x", "sec-websocket-version": "13"}
    assert request(server, "/livez", headers=headers)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_a_collector_is_an_internal_error(caplog):
    class Broken:
        def collect(self):
            raise RuntimeError("broken")

    server = HttpServer("127.0.0.1", 0, registry_of(Broken()), lambda: True)
    try:
        assert request(server, "/metrics")[::2] == (500, b"internal error; the log has the details\n")
        assert request(server, "/livez")[0] == 200
    finally:
        server.stop()
    assert "answering /metrics failed" in caplog.text


def test_a_port_is_free_again_after_a_stop_with_open_connections():
    host = own_address()
    with serving(host=host) as server, socket.create_connection((host, server.port), timeout=PATIENCE_S) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1 << 16).endswith(b"alive\n")
        port = server.port
        with pytest.raises(CannotListen, match=f"cannot listen on {host}:{port}: .*; --http-port chooses another"):
            HttpServer(host, port, registry(), lambda: True)
        server.stop()
        assert client.recv(1) == b""
        HttpServer(host, port, registry(), lambda: True).stop()
