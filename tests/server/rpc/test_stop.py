"""A stop of the server, as its clients see it."""

import asyncio
import contextlib
import json
import select
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter

import grpc
import pytest
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.admission.in_flight import InFlight
from server.rpc.connections import GOAWAY, Connections
from tests import frames
from tests.certificates import Authority
from tests.server.generation.test_failures import NARROW, large_request
from tests.serving import ROOT, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sockets of a process are found on Linux only")

# A busy machine takes its time.
UNHURRIED = ("--set", "*.max_queue_seconds=600", "--drain-seconds", "600", "--slow-client-seconds", "0")

# ---- with a real server


@pytest.mark.parametrize(
    ("drain_seconds", "connection"), [("600", "plain"), ("0", "plain"), ("600", "TLS"), ("600", "Unix socket")]
)
def test_every_call_at_a_stop_is_answered_or_unavailable(artifacts, tmp_path, socket_path, drain_seconds, connection):
    flags = ["--models", "tiny-bert,tiny-gpt", *UNHURRIED, "--drain-seconds", drain_seconds]
    authority = Authority(tmp_path / "authority")
    match connection:
        case "TLS":
            issued = authority.sign("server")
            flags += ["--tls-cert", issued.certificate, "--tls-key", issued.key]
        case "Unix socket":
            flags += ["--listen", f"unix:{socket_path}"]
    with served(artifacts, *flags) as running:
        target = f"unix:{socket_path}" if connection == "Unix socket" else f"localhost:{running.port}"
        command = [sys.executable, "-m", "tests.stopping", target, "8", "3"]
        command += [authority.certificate] if connection == "TLS" else []
        clients = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [client.stdout.readline() for client in clients] == ["sending\n"] * 3
        running.process.send_signal(signal.SIGTERM)
        ended = sum((Counter(json.loads(client.communicate(timeout=120)[0])) for client in clients), Counter())
        log, _ = running.process.communicate(timeout=60)
    assert ended.keys() <= {"OK", "UNAVAILABLE"}, ended
    assert ended["OK"] or drain_seconds == "0"
    assert ended["UNAVAILABLE"]
    assert running.process.returncode == 0, log
    assert "Traceback" not in log
    assert not socket_path.exists()


def literal(name: str, value: str) -> bytes:
    """A header without compression (RFC 7541, 6.2.2). Both strings have less than 128 bytes."""
    return b"\0" + b"".join(bytes((len(text),)) + text.encode() for text in (name, value))


def request_frames(path: str, message: bytes, *, stream: int) -> bytes:
    """The frames of a unary call."""
    headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test", "te": "trailers"}
    headers["content-type"] = "application/grpc"
    block = b"".join(literal(*header) for header in headers.items())
    data = b"\0" + len(message).to_bytes(4, "big") + message
    return frames.frame(frames.HEADERS, block, flags=frames.END_HEADERS, stream=stream) + frames.frame(
        frames.DATA, data, flags=frames.END_STREAM, stream=stream
    )


async def test_clients_get_goaway_first_and_calls_that_arrive_later_are_answered(artifacts):
    received: asyncio.Queue[int] = asyncio.Queue()
    reader = frames.FrameReader(lambda kind, flags, payload: received.put_nowait(kind))

    async def wait_for_frame(kind):
        while received.empty() or received.get_nowait() != kind:
            if received.empty():
                data = await asyncio.wait_for(client.read(1 << 16), 30)
                assert data, f"the connection ended before frame {kind}"
                reader.feed(data)

    with served(artifacts, "--models", "tiny-gpt", *UNHURRIED) as running:
        async with grpc.aio.insecure_channel(running.target, NARROW) as channel:
            client, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(frames.PREFACE + frames.frame(frames.SETTINGS))
            await wait_for_frame(frames.SETTINGS)
            stream = AffinityStub(channel).Generate(large_request(40))  # in flight until all of it has been read
            pieces = aiter(stream)
            await anext(pieces)
            running.process.send_signal(signal.SIGTERM)
            await wait_for_frame(frames.GOAWAY)
            assert not stream.done()
            message = pb.CountTokensRequest(inputs=["A list is"]).SerializeToString()
            writer.write(request_frames("/affinity.v1.Affinity/CountTokens", message, stream=1))
            await wait_for_frame(frames.DATA)
            reasons = [piece.finish_reason async for piece in pieces if piece.finish_reason]
            writer.close()
            await writer.wait_closed()
        log, _ = await asyncio.to_thread(running.process.communicate, timeout=60)
    assert reasons == ["length"] * 40
    assert running.process.returncode == 0, log


def test_new_connections_are_refused_while_a_call_is_finished(artifacts):
    with (
        served(artifacts, "--models", "tiny-gpt", *UNHURRIED) as running,
        grpc.insecure_channel(running.target) as channel,
        grpc.insecure_channel(running.target, NARROW) as narrow,
    ):
        stream = AffinityStub(narrow).Generate(large_request(40))  # in flight until all of it has been read
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        next(stream), next(watched)
        running.process.send_signal(signal.SIGTERM)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port))
        reasons = [piece.finish_reason for piece in stream if piece.finish_reason]
        assert running.process.wait(timeout=60) == 0
    assert reasons == ["length"] * 40


def test_requests_are_served_for_a_time_in_which_health_checks_fail(artifacts):
    flags = ("--models", "tiny-bert", "--shutdown-delay-seconds", "600")
    with served(artifacts, *flags) as running, grpc.insecure_channel(running.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watched = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "model/tiny-bert")]
        assert [next(each).status for each in watched] == [health_pb2.HealthCheckResponse.SERVING] * 2
        running.process.send_signal(signal.SIGTERM)
        assert [next(each).status for each in watched] == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(running.url("/readyz"), timeout=30)
        assert urllib.request.urlopen(running.url("/livez"), timeout=30).status == 200
        with (
            triton.InferenceServerClient(running.target) as other,
            grpc.insecure_channel(running.target, options=[("grpc.use_local_subchannel_pool", 1)]) as later,
        ):
            assert (other.is_server_live(), other.is_server_ready(), other.is_model_ready("tiny-bert")) == (
                True,
                False,
                False,
            )
            for each in (channel, later):  # an open connection and a new one
                assert AffinityStub(each).FillMask(pb.FillMaskRequest(inputs=["A [MASK]."])).results
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=60) == 128 + signal.SIGTERM


def test_the_server_stops_after_the_time_in_which_health_checks_fail(artifacts):
    with served(artifacts, "--models", "tiny-bert", "--shutdown-delay-seconds", "0.2") as running:
        running.process.send_signal(signal.SIGTERM)
        log, _ = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    assert log.index("requests are served for 0.2 s more") < log.index("requests in flight have") < log.index("stopped")


# ---- with plain sockets in the place of gRPC


class Context:
    """gRPC's context of a call from one address; clients of Unix-domain sockets have none."""

    def __init__(self, address):
        self._peer, self.done = "ipv4:{}:{}".format(*address) if address else "unix:", []

    def peer(self):
        return self._peer

    def add_done_callback(self, callback):
        self.done.append(callback)


@pytest.fixture(params=["TCP", "Unix"])
def connected(request, socket_path):
    """The connections of a server, and both ends of one of them."""
    family = socket.AF_INET if request.param == "TCP" else socket.AF_UNIX
    connections = Connections()
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind(("127.0.0.1", 0) if family == socket.AF_INET else str(socket_path))
        listener.listen()
        if family == socket.AF_INET:
            connections.port = listener.getsockname()[1]
        else:
            connections.paths = [listener.getsockname()]
        client.settimeout(30)
        client.connect(listener.getsockname())
        with listener.accept()[0] as server:
            server.setblocking(False)
            yield connections, client, server


def nothing_arrived(client):
    return select.select([client], [], [], 0)[0] == []


async def test_goaway_waits_for_a_message_that_is_being_written(connected):
    connections, client, _ = connected
    context = Context(client.getsockname())
    with connections.writing(context):
        connections.begin_stop()
        draining = asyncio.create_task(connections.drain(InFlight("stopping"), 30))
        await asyncio.wait([draining], timeout=0.05)
        assert nothing_arrived(client)
    assert await asyncio.to_thread(client.recv, 100) == GOAWAY
    await draining


async def test_goaway_waits_for_the_status_of_a_call(connected):
    connections, client, _ = connected
    context = Context(client.getsockname())
    connections.writing_last(context)
    connections.begin_stop()
    assert nothing_arrived(client)
    for callback in context.done:
        callback(context)
    draining = asyncio.create_task(connections.drain(InFlight("stopping"), 30))
    assert await asyncio.to_thread(client.recv, 100) == GOAWAY
    await draining


async def test_goaway_waits_until_the_client_has_read_what_was_sent(connected):
    connections, client, server = connected
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += server.send(bytes(1 << 16))
    connections.begin_stop()
    draining = asyncio.create_task(connections.drain(InFlight("stopping"), 30))
    received = b""
    while len(received) < sent + len(GOAWAY):
        received += await asyncio.to_thread(client.recv, 1 << 20)
    assert received == bytes(sent) + GOAWAY
    await draining


async def test_the_end_comes_after_what_was_sent(connected):
    connections, client, server = connected
    server.sendall(b"the last response")
    closing = asyncio.create_task(connections.close())
    received = b""
    while data := await asyncio.to_thread(client.recv, 100):
        received += data
    assert received == b"the last response"
    server.close()
    await closing


def test_calls_on_open_connections_only_count_as_late(connected):
    connections, client, _ = connected
    assert not connections.was_open_at_stop(Context(client.getsockname()))
    connections.begin_stop()
    assert connections.was_open_at_stop(Context(client.getsockname()))
    name = client.getpeername()
    if client.family == socket.AF_INET:
        assert not connections.was_open_at_stop(Context(("10.0.0.1", client.getsockname()[1] ^ 1)))
    with socket.socket(client.family) as late, pytest.raises(ConnectionRefusedError):
        late.connect(name)


async def test_connections_with_tls_are_closed_once_no_call_is_in_flight(connected):
    """Nothing is written between the bytes of TLS. Unix-domain sockets have none."""
    connections, client, _ = connected
    connections.encrypted = True
    context = Context(client.getsockname())
    with connections.calling(context):
        connections.begin_stop()
        if client.family == socket.AF_UNIX:
            assert client.recv(100) == GOAWAY
            assert connections.was_open_at_stop(context)
            return
        assert not connections.was_open_at_stop(context)
        late = asyncio.create_task(connections.wait_for_close(context))
        draining = asyncio.create_task(connections.drain(InFlight("stopping"), 30))
        await asyncio.wait([draining], timeout=0.05)
        assert nothing_arrived(client)
        assert not late.done()
    assert await asyncio.to_thread(client.recv, 100) == b""
    await asyncio.gather(draining, late)


async def test_idle_connections_with_tls_are_closed_at_once(connected):
    connections, client, _ = connected
    connections.encrypted = True
    connections.begin_stop()
    assert client.recv(100) == (GOAWAY if client.family == socket.AF_UNIX else b"")
