"""`python -m server` starts wherever it is put: other environments, other addresses, other standard files."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress

import pytest

from server.client import Client
from tests.server.config.test_environment import DOCKER, KUBERNETES
from tests.server.host.test_listening import needs_ipv6
from tests.serving import READY, ROOT, own_address, served

PATIENCE_S = 120
COMMAND = [sys.executable, "-m", "server", "--port", "0", "--http-port", "0"]
COMMAND += ["--provider", "cpu", "--threads", "1", "--tune", "off"]


def fails(*flags, **environment):
    """The exit code and stderr of a server that does not start."""
    done = subprocess.run(
        [*COMMAND, *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def alive(url):
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as response:
        return response.read() == b"alive\n"


# ---- environment


def test_beside_a_service_called_affinity_and_with_a_misspelt_variable(artifacts):
    injected = {**DOCKER, **KUBERNETES}
    environment = {**os.environ, **injected, "AFFINITY_DRAIN_SECOND": "5"}
    with served(artifacts, "--models", "tiny-vit", environment=environment) as running:
        assert alive(running.url("/livez"))
        [line] = [line for line in running.banner.splitlines() if "Kubernetes service" in line]
        assert all(variable in line for variable in injected)
        assert "AFFINITY_DRAIN_SECOND (similar: AFFINITY_DRAIN_SECONDS)" in running.banner


# ---- addresses


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("localhost", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        pytest.param("[::1]", "[::1]", marks=needs_ipv6),
        pytest.param("::", "[::1]", marks=needs_ipv6),
    ],
)
def test_grpc_and_http_listen_on_the_same_addresses(artifacts, host, reached):
    with served(artifacts, "--models", "tiny-vit", "--host", host) as running:
        assert alive(f"http://{reached}:{running.http_port}/livez")
        with Client(f"{reached}:{running.port}") as client:
            assert client.health() == "SERVING"
        [warning] = re.findall("other machines can connect to .*", running.banner) or [""]
        assert ("--tls-cert" in warning and "--auth-tokens" in warning) == (host in ("0.0.0.0", "::"))
        [example] = re.findall(r"--server (\S+)", running.banner)
        assert example.rpartition(":")[2] == str(running.port)
        with Client(example) as client:
            assert client.health() == "SERVING"


def test_a_host_that_is_none_is_explained_in_one_line(artifacts):
    code, said = fails("--artifacts", artifacts, "--host", "nowhere.invalid")
    assert (code, said.count("\n")) == (1, 1)
    assert "cannot resolve the host 'nowhere.invalid': " in said
    code, said = fails("--artifacts", artifacts, "--host", "192.0.2.1")
    assert (code, said.count("\n")) == (1, 1)
    assert "cannot listen on 192.0.2.1:0: Cannot assign requested address; --host chooses another" in said
    code, said = fails("--artifacts", artifacts, "--host", "")
    assert (code, said.count("\n")) == (2, 1)
    assert "--host: found '', expected an address or a name, without a port; --help explains the settings" in said


@needs_ipv6
@pytest.mark.parametrize(("host", "flag"), [("::1", "--port"), ("::", "--http-port"), ("0.0.0.0", "--port")])
def test_a_port_that_is_taken_on_ipv6_is_explained_in_one_line(artifacts, host, flag):
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        code, said = fails("--artifacts", artifacts, "--host", host, flag, port)
    assert (code, said.count("\n")) == (1, 1)
    assert re.search(
        rf"cannot listen on \[::1?\]:{port}( \(0\.0\.0\.0\))?: Address already in use; {flag} chooses another", said
    )


# ---- standard files


@pytest.mark.parametrize(
    ("redirected", "style"),
    [("<&- >&- 2>&-", "text"), ("2>&-", "json"), ("> /dev/full 2>&1", "text"), ("2> /dev/full", "json")],
)
def test_closed_and_full_files_neither_keep_it_from_serving_nor_change_its_exit_code(
    artifacts, tmp_path, redirected, style
):
    host = own_address()
    flags = ["--host", host, "--port", "8001", "--http-port", "8002", "--log-format", style, "--log-level", "debug"]
    line = " ".join(["exec", *COMMAND, "--artifacts", str(artifacts), "--models", "tiny-vit", *flags, redirected])
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(["bash", "-c", line], cwd=ROOT, stdout=log, stderr=log)
    try:
        wait_until_ready(process, f"http://{host}:8002/readyz")
        with Client(f"{host}:8001") as client:
            assert client.health() == "SERVING"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def wait_until_ready(process, url):
    """Probe the server until it is ready or has ended."""
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S):
                return
        except OSError:  # not yet listening, or not yet ready
            with suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the server ended with {process.wait(0.1)}") from None


@pytest.mark.parametrize(("reader", "style"), [("gone", "text"), ("asleep", "text"), ("asleep", "json")])
def test_a_reader_that_goes_away_or_stops_reading_does_not_stop_the_server(artifacts, reader, style):
    command = [
        *COMMAND,
        "--artifacts",
        artifacts,
        "--models",
        "tiny-vit",
        "--log-format",
        style,
        "--log-level",
        "debug",
    ]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        output = ""
        while not (ready := READY.search(output)):
            line = process.stdout.readline()
            assert line, output
            output += line
        if reader == "gone":
            process.stdout.close()
        else:
            fill(process.stdout)
        with Client(f"127.0.0.1:{ready[1]}") as client:
            for _ in range(5):
                assert client.health() == "SERVING"
        assert alive(f"http://127.0.0.1:{ready[2]}/livez")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def fill(stream):
    """Fill the pipe that a process writes to, from its other end."""
    writer = os.open(f"/proc/self/fd/{stream.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        while True:
            os.write(writer, b"x" * 4096)
    except BlockingIOError:
        pass
    finally:
        os.close(writer)


# ---- JSON


def test_every_line_of_a_json_log_is_an_object(artifacts):
    environment = {**os.environ, "GRPC_VERBOSITY": "DEBUG", "GRPC_TRACE": "http", "PYTHONWARNINGS": "always"}
    command = [*COMMAND, "--artifacts", artifacts, "--models", "tiny-vit", "--log-format", "json"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pipesize=1 << 20,  # no line is lost while the machine is busy
    )
    try:
        lines = []
        while not lines or not (ready := READY.search(lines[-1])):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        with Client(f"127.0.0.1:{ready[1]}") as client:
            assert client.health() == "SERVING"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    objects = [json.loads(line) for line in [*lines, *rest.splitlines()]]
    assert {"server", "grpc"} <= {found["logger"] for found in objects}
    assert "stopped" in [found["message"] for found in objects]


def test_errors_of_settings_are_objects_too():
    for expected, flags, text in (
        (2, ["--port", "x"], "--port: found 'x', expected a whole number, 0 or more"),
        (2, ["--nothing"], "unrecognized arguments: --nothing"),
        (1, ["--host", "nowhere.invalid"], "cannot resolve the host 'nowhere.invalid'"),
    ):
        code, said = fails(*flags, AFFINITY_LOG_FORMAT="json")
        [error] = map(json.loads, said.splitlines())
        assert (code, error["level"]) == (expected, "error")
        assert text in error["message"]
