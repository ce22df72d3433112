"""The health check of the image, against HTTP servers with and without TLS."""

import socket
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry

from server.auth.certificates import watch_certificates
from server.auth.security import Security
from server.observability.http import HttpServer
from server.observability.probe import main
from tests.certificates import Authority


@contextmanager
def serving(tmp_path, kind, ready):
    security = Security()
    if kind != "plain":
        authority = Authority(tmp_path / "authority")
        issued = authority.sign("server")
        ca = authority.certificate if kind == "mutual TLS" else None
        security = Security(certificates=watch_certificates(issued.certificate, issued.key, ca))
    server = HttpServer("127.0.0.1", 0, CollectorRegistry(auto_describe=True), lambda: ready, security=security)
    try:
        yield {"AFFINITY_HTTP_PORT": str(server.port)}
    finally:
        server.stop()


@pytest.mark.parametrize("kind", ["plain", "TLS", "mutual TLS"])
@pytest.mark.parametrize("ready", [True, False])
def test_the_probe_reports_whether_the_server_is_ready(tmp_path, capsys, kind, ready):
    with serving(tmp_path, kind, ready) as environment:
        assert main(environment) == (0 if ready else 1)
    assert capsys.readouterr().out == ("ready\n" if ready else "not ready\n")


def test_a_port_on_which_nothing_listens_is_not_ready(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert main({"AFFINITY_HTTP_PORT": str(port)}) == 1
    assert capsys.readouterr().out == f"127.0.0.1:{port}: Connection refused\n"
