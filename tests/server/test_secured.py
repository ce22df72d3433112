"""`python -m server` with TLS, tokens and a Unix-domain socket, called through tritonclient and over HTTPS."""

import http.client
import socket
import ssl
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from server.client import CallFailed, Client, Tls
from tests.certificates import Authority, Signed
from tests.server.test_starts import fails
from tests.serving import Served, served

PATIENCE_S = 60
TOKENS = {"alice": "the-secret-of-alice", "bob": "the-secret-of-bob", "root": "the-secret-of-root admin"}


def write_tokens(file, names):
    file.write_text("".join(f"{name}: {TOKENS[name]}\n" for name in names))


def bearer(name):
    return {"authorization": f"Bearer {TOKENS[name].split()[0]}"}


@dataclass(frozen=True)
class Secured:
    """A server with everything, and what its clients need."""

    running: Served
    authority: Authority
    issued: Signed
    client: Signed
    tokens: Path
    socket: Path

    @contextmanager
    def triton(self):
        """A client of tritonclient's that has a certificate."""
        files = {
            "root_certificates": str(self.authority.certificate),
            "private_key": str(self.client.key),
            "certificate_chain": str(self.client.certificate),
        }
        own = [("grpc.use_local_subchannel_pool", 1)]
        target = f"localhost:{self.running.port}"
        with triton.InferenceServerClient(target, ssl=True, channel_args=own, **files) as client:
            yield client

    def get(self, path, headers=None):
        """Status and text of a request over HTTPS, and the certificate of the server."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.load_cert_chain(self.client.certificate, self.client.key)
        connection = http.client.HTTPSConnection("localhost", self.running.http_port, timeout=30, context=context)
        try:
            connection.connect()
            presented = ssl.DER_cert_to_PEM_cert(connection.sock.getpeercert(binary_form=True))
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode(), presented
        finally:
            connection.close()


@pytest.fixture(scope="module")
def secured(artifacts, tmp_path_factory):
    directory = tmp_path_factory.mktemp("secured")
    authority = Authority(directory / "authority")
    issued, client, tokens = authority.sign("server"), authority.sign("client"), directory / "tokens"
    write_tokens(tokens, TOKENS)
    with tempfile.TemporaryDirectory() as short:
        path = Path(short) / "socket"
        flags = ["--models", "tiny-classifier", "--model-control", "explicit", "--listen", f"unix:{path}"]
        flags += ["--tls-cert", issued.certificate, "--tls-key", issued.key, "--tls-client-ca", authority.certificate]
        flags += ["--auth-tokens", tokens, "--auth-also", "metrics,reflection"]
        with served(artifacts, *flags) as running:
            yield Secured(running, authority, issued, client, tokens, path)


def classify(client, name):
    text = triton.InferInput("text", [1], "BYTES").set_data_from_numpy(np.array([b"a list"], np.object_))
    return client.infer("tiny-classifier", [text], headers=bearer(name)).as_numpy("score").size


def eventually(condition):
    """Wait for a state that the server reaches by itself."""
    end = time.monotonic() + PATIENCE_S
    while not (reached := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    assert reached


def test_a_client_with_a_certificate_and_a_token_is_served(secured):
    with secured.triton() as client:
        assert classify(client, "alice")
        with pytest.raises(InferenceServerException, match="expected `Bearer` and a valid token") as error:
            client.is_server_live()
        assert error.value.status() == "StatusCode.UNAUTHENTICATED"
        with pytest.raises(InferenceServerException, match="found the token of alice") as error:
            client.unload_model("tiny-classifier", headers=bearer("alice"))
        assert error.value.status() == "StatusCode.PERMISSION_DENIED"
        client.load_model("tiny-classifier", headers=bearer("root"))


def test_the_client_of_the_server_has_the_same_options(secured):
    tls = Tls(secured.authority.certificate, *secured.client)
    with Client(f"localhost:{secured.running.port}", tls=tls, token="the-secret-of-bob") as client:
        assert client.classify_text(["a list"])
    with Client(f"unix:{secured.socket}", token="the-secret-of-mallory") as client:
        with pytest.raises(CallFailed, match="expected `Bearer` and a valid token"):
            client.classify_text(["a list"])
        assert client.health() == "SERVING"


def test_the_unix_socket_has_the_same_services_and_needs_tokens(secured):
    with (
        triton.InferenceServerClient(f"unix:{secured.socket}") as client,
        grpc.insecure_channel(f"unix:{secured.socket}") as channel,
    ):
        assert classify(client, "bob")
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.is_server_live()
        checked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert checked.status == health_pb2.HealthCheckResponse.SERVING


def test_metrics_need_a_token_and_count_by_name(secured):
    assert secured.get("/livez")[0] == secured.get("/readyz")[0] == 200
    assert secured.get("/metrics")[0] == 401
    with secured.triton() as client:
        classify(client, "bob")
    status, text, _ = secured.get("/metrics", bearer("alice"))
    assert status == 200
    assert 'affinity_authenticated_calls_total{client="bob"}' in text
    assert "secret" not in text


def test_a_certificate_is_replaced_under_traffic_without_a_failed_request(secured):
    """Two clients call without a pause, one of them on new connections all the time."""
    failures, over = [], threading.Event()

    def call(new_connections):
        try:
            while not over.is_set():
                with secured.triton() as client:
                    classify(client, "alice")
                    while not new_connections and not over.is_set():
                        classify(client, "alice")
        except Exception as error:
            failures.append(error)

    callers = [threading.Thread(target=call, args=(new_connections,)) for new_connections in (False, True)]
    for caller in callers:
        caller.start()
    try:
        for number in range(2):
            secured.issued.replace_by(secured.authority.sign(f"replacement-{number}"))
            eventually(lambda: secured.get("/livez")[2] == secured.issued.certificate.read_text())
        with secured.triton() as client:
            classify(client, "alice")
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert failures == []


def test_a_revoked_token_is_refused_and_a_broken_file_revokes_none(secured):
    with secured.triton() as client:

        def status(name):
            try:
                return "OK" if classify(client, name) else ""
            except InferenceServerException as error:
                return error.status().removeprefix("StatusCode.")

        try:
            with socket.create_connection(("127.0.0.1", secured.running.port), timeout=PATIENCE_S) as scanner:
                scanner.sendall(b"GET / HTTP/1.1\r\n\r\n")
                with suppress(ConnectionError):
                    scanner.recv(100)
            write_tokens(secured.tokens, ("bob", "root"))
            eventually(lambda: status("alice") == "UNAUTHENTICATED")
            assert status("bob") == "OK"
            secured.tokens.write_text("bob the-secret-of-bob")
            line = secured.running.process.stdout.readline()
            while "line 1" not in line:
                assert "ssl_transport_security" not in line  # of every handshake that fails
                line = secured.running.process.stdout.readline()
            assert f"--auth-tokens {secured.tokens}: line 1: expected `NAME: TOKEN`" in line
            assert "the-secret" not in line
            assert status("bob") == "OK"
        finally:
            write_tokens(secured.tokens, TOKENS)
        eventually(lambda: status("alice") == "OK")


# ---- starts


@pytest.mark.parametrize("flag", ["--tls-cert", "--tls-key", "--tls-client-ca", "--auth-tokens"])
def test_a_bad_file_ends_the_start_with_one_line(artifacts, tmp_path, flag):
    authority, tokens = Authority(tmp_path / "authority"), tmp_path / "tokens"
    issued = authority.sign("server")
    write_tokens(tokens, TOKENS)
    files = {"--tls-cert": issued.certificate, "--tls-key": issued.key, "--tls-client-ca": authority.certificate}
    files["--auth-tokens"] = tokens
    files[flag].write_text("the-secret: of a file that is something else")
    flags = [word for pair in files.items() for word in pair]
    code, log = fails("--artifacts", artifacts, *flags)
    assert code == 1
    [line] = log.splitlines()
    assert f"{flag} {files[flag]}: " in line
    assert "the-secret" not in line
