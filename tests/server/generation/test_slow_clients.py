"""A client that does not read its stream loses it after --slow-client-seconds, and its slots are free."""

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager

import grpc
import pytest

from protos.affinity_pb2_grpc import AffinityStub
from protos.open_inference_pb2 import ModelInferRequest, ModelStreamInferResponse
from server.admission.in_flight import InFlight
from server.observability.prometheus import Metrics
from server.rpc.calls.response_writer import time_to_read_s
from tests.continuations import greedy_of, request_of, tokens_of
from tests.server.generation.test_failures import NARROW, decoder_of, large_request, listening
from tests.serving import ROOT, served

FREE_STEPS = 50  # of up to 60: what they give fills a window

READER = """
import sys, grpc
from protos.affinity_pb2_grpc import AffinityStub
from tests.server.generation.test_failures import NARROW, large_request

with grpc.insecure_channel(sys.argv[1], NARROW) as channel:
    stream = AffinityStub(channel).Generate(large_request())
    next(stream)
    print("reading", flush=True)
    sys.stdin.readline()
    try:
        print(len(list(stream)), "responses")
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


@pytest.fixture
def root(exported):
    return exported("tiny-gpt").parents[1]


class Endless:
    """After some steps, a step begins only when all sequences in it are cancelled: none ends by itself."""

    def __init__(self, engine):
        self._engine, self._decoder, self._decode = engine, decoder_of(engine), decoder_of(engine).decode
        self._steps, self._waiting = 0, threading.Event()
        self._decoder.decode = self.decode

    def decode(self, *arguments):
        self._steps += 1
        running = self._engine._worker._scheduler.running
        while self._steps > FREE_STEPS and not all(sequence.cancelled for sequence in running):
            self._waiting.wait(0.001)
        return self._decode(*arguments)

    def end(self):
        self._decoder.decode = self._decode


def generate(channel):
    """A call of the typed service."""
    return AffinityStub(channel).Generate(large_request())


def infer(channel):
    """The same over the Open Inference Protocol, with a request for every tenth of the prompts."""

    async def requests():
        for number in range(20):
            request = ModelInferRequest(model_name="tiny-gpt", id=str(number))
            tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[10])
            tensor.contents.bytes_contents.extend([b"A list"] * 10)
            request.parameters["max_tokens"].int64_param = 60
            request.parameters["ignore_eos"].bool_param = True
            yield request
        await asyncio.Event().wait()  # the client leaves the stream open

    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=ModelInferRequest.SerializeToString,
        response_deserializer=ModelStreamInferResponse.FromString,
    )
    return call(requests())


def counted(metrics, name, **labels):
    """The value of a counter, summed over all other labels."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]
    return sum(s.value for s in samples if labels.items() <= s.labels.items())


async def until(condition):
    """Wait until the condition holds, for at most a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def read_all(call, received):
    """Append the responses of a call to a list, so that those before an error are there."""
    async for response in call:
        received.append(response)


@pytest.mark.parametrize(("call", "method", "requests"), [(generate, "Generate", 1), (infer, "ModelStreamInfer", 20)])
async def test_a_client_that_does_not_read_loses_its_slots_and_reads_why(root, reference, call, method, requests):
    metrics, calls = Metrics(), InFlight("the server is stopping")
    async with (
        listening(root, calls, metrics, slow_client_seconds=1.0) as (address, engine),
        grpc.aio.insecure_channel(address, NARROW) as its_own,
    ):
        endless = Endless(engine)
        silent = call(its_own)
        await until(lambda: counted(metrics, "grpc_server_handled_total", grpc_method=method, grpc_code="ABORTED"))
        await engine._worker.wait_idle()
        assert engine.running_inputs == engine.waiting_inputs == engine.waiting_tokens == 0
        assert await calls.wait_idle(60)
        assert counted(metrics, "affinity_requests_total", status="ABORTED") == requests
        assert counted(metrics, "affinity_finished_generations_total", reason="slow_client") >= 1
        assert counted(metrics, "affinity_dropped_rows_total", reason="slow_client") >= 1
        endless.end()
        async with grpc.aio.insecure_channel(address) as channel:
            other = AffinityStub(channel).Generate(request_of([1, 2, 3], max_tokens=20, temperature=0))
            assert tokens_of([piece async for piece in other]) == greedy_of(reference, [1, 2, 3], 20)
        received = []
        with pytest.raises(grpc.aio.AioRpcError, match="did not read for 1.0 s") as failed:
            await read_all(silent, received)
        assert failed.value.code() is grpc.StatusCode.ABORTED
        assert received  # what was sent before


async def test_a_client_that_does_not_read_keeps_its_stream_without_a_limit(root):
    metrics = Metrics()
    async with (
        listening(root, metrics=metrics, slow_client_seconds=0) as (address, engine),
        grpc.aio.insecure_channel(address, NARROW) as its_own,
    ):
        silent = generate(its_own)
        await silent.initial_metadata()
        await engine._worker.wait_idle()
        reasons = [piece.finish_reason async for piece in silent if piece.finish_reason]
        assert reasons == ["length"] * 200


@contextmanager
def reading(target):
    """A client in a process of its own that has read its first response and waits."""
    command = [sys.executable, "-c", READER, target]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout.readline() == "reading\n"
            yield client
        finally:
            client.kill()


def test_a_stopped_client_loses_its_stream_and_reads_why_when_it_goes_on(root):
    flags = ("--models", "tiny-gpt", "--slow-client-seconds", "1")
    with served(root, *flags) as running, reading(running.target) as client:
        client.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while not re.search(r'affinity_requests_total{.*status="ABORTED".*} 1.0', scraped(running)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        client.send_signal(signal.SIGCONT)
        output, _ = client.communicate("go on\n", timeout=60)
        assert output.startswith("ABORTED the client did not read for 1.0 s")


def scraped(running):
    with urllib.request.urlopen(running.url("/metrics"), timeout=60) as answer:
        return answer.read().decode()


def test_a_large_response_may_be_read_for_longer():
    assert time_to_read_s(b"", 30) == 30
    assert time_to_read_s(bytes(1_000_000), 30) == 40
