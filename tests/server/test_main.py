"""`python -m server` from start to exit."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.client import Client, Unreachable
from tests.server.generation.test_failures import NARROW, large_request
from tests.serving import served

PATIENCE_S = 60
ROOT = Path(__file__).parents[2]
UNHURRIED = ("--drain-seconds", "600", "--slow-client-seconds", "0")  # a busy machine takes its time
COMMAND = [sys.executable, "-m", "server", "--port", "0", "--http-port", "0", "--provider", "cpu", "--tune", "off"]


def start(*flags, **environment):
    """Run a server that is expected to exit by itself."""
    return subprocess.run(
        [*COMMAND, *map(str, flags)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_banner_has_three_lines_that_work(server):
    lines = [line.strip() for line in server.banner.splitlines() if "server.client" in line]
    assert [line.split("127.0.0.1:")[1].split()[1] for line in lines] == ["fill-mask", "generate", "classify-image"]
    command = [sys.executable, *shlex.split(lines[0])[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def fill_masks(stub):
    """Until an error. The server answers calls that are on their way while the client does not know of the stop."""
    while True:
        stub.FillMask(pb.FillMaskRequest(inputs=["[MASK]"]))


@contextmanager
def in_flight(running):
    """A stream of the texts of 40 prompts, of which one response was read. It ends when all have been read."""
    with grpc.insecure_channel(running.target, NARROW) as channel:
        stream = AffinityStub(channel).Generate(large_request(40))
        next(stream)
        yield stream


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_requests_in_flight_finish(artifacts, number):
    with served(artifacts, "--models", "tiny-gpt,tiny-bert", *UNHURRIED) as running:
        with grpc.insecure_channel(running.target) as channel, in_flight(running) as stream:
            watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
            assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
            running.process.send_signal(number)
            assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
            with pytest.raises(grpc.RpcError) as error:
                fill_masks(AffinityStub(channel))
            reasons = [response.finish_reason for response in stream if response.finish_reason]
        output, _ = running.process.communicate(timeout=PATIENCE_S)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reasons == ["length"] * 40
        assert running.process.returncode == 0, output
        assert "stopped" in output


def test_requests_that_exceed_the_drain_time_end_with_the_text_so_far(artifacts):
    one_by_one = ("--set", "tiny-gpt.slots=1")  # takes half a minute
    with served(artifacts, "--models", "tiny-gpt", "--drain-seconds", "0", *one_by_one) as running:
        with grpc.insecure_channel(running.target) as channel:
            prompts = [pb.Prompt(text="A list is")] * 1000
            stream = AffinityStub(channel).Generate(pb.GenerateRequest(prompts=prompts, max_tokens=60, ignore_eos=True))
            next(stream)
            running.process.send_signal(signal.SIGTERM)
            reasons = [response.finish_reason for response in stream if response.finish_reason]
        assert running.process.wait(timeout=PATIENCE_S) == 0
    assert len(reasons) == 1000
    assert reasons.count("cancelled") > 100


def test_an_idle_server_exits_at_once_although_a_client_watches_its_health(artifacts):
    with served(artifacts, "--models", "tiny-vit") as running, grpc.insecure_channel(running.target) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
        next(watched)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=PATIENCE_S) == 0


def test_a_second_signal_exits_at_once(artifacts):
    with served(artifacts, "--models", "tiny-gpt", *UNHURRIED) as running, in_flight(running):
        running.process.send_signal(signal.SIGINT)
        while "stopping" not in running.process.stdout.readline():
            pass
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(timeout=PATIENCE_S) != 0


def test_a_signal_while_models_are_loaded_stops_the_server(artifacts):
    with subprocess.Popen(
        [*COMMAND, "--artifacts", artifacts],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output = process.stderr.readline()  # of the first model
        assert "tiny-bert version 1" in output
        process.send_signal(signal.SIGTERM)
        output += process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, output
    assert "stopped" in output
    assert "Traceback" not in output


# ---- reasons not to start: one line, exit status 1


def failed(done, message):
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    return True


def test_no_models(tmp_path):
    done = start("--artifacts", tmp_path)
    assert failed(done, "python -m export")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flag", ["--port", "--http-port"])
def test_a_port_in_use(artifacts, flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = start("--artifacts", artifacts, flag, taken.getsockname()[1])
        assert failed(done, f"cannot listen on 127.0.0.1:{taken.getsockname()[1]}")
    assert flag in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_model(artifacts):
    assert failed(start("--artifacts", artifacts, "--models", "missing"), "missing")


def test_a_broken_artifact(tmp_path):
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/manifest.json").write_text("{}")
    assert failed(start("--artifacts", tmp_path), str(tmp_path / "bad/1"))


def test_a_provider_that_cannot_run(artifacts):
    done = start("--artifacts", artifacts, "--provider", "cuda", CUDA_VISIBLE_DEVICES="")
    assert failed(done, "cuda")


def test_a_wrong_flag_is_explained(artifacts):
    done = start("--artifacts", artifacts, "--port", "x")
    assert done.returncode == 2
    assert "--port" in done.stderr


def test_the_client_reports_that_no_server_answers(artifacts):
    with served(artifacts, "--models", "tiny-vit") as running:
        running.process.send_signal(signal.SIGTERM)
        running.process.wait(timeout=PATIENCE_S)
        with Client(running.target) as client, pytest.raises(Unreachable, match="no server answers"):
            client.health()
