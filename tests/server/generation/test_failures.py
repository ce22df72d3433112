"""Failing steps, cancelled calls and slow readers, over gRPC."""

import asyncio
import threading
from contextlib import asynccontextmanager

import grpc
import pytest
import tritonclient.grpc.aio as triton_aio

from protos.affinity_pb2 import GenerateRequest, Prompt, TokenIds
from protos.affinity_pb2_grpc import AffinityStub
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.observability.prometheus import Metrics
from server.repository.repository import Repository
from server.rpc.connections import Connections
from server.rpc.health import Health
from server.rpc.server import build_server
from server.serving import Reporter
from tests.continuations import request_of, tokens_of

NARROW = [("grpc.http2.bdp_probe", 0)]  # otherwise gRPC measures the loopback network and buffers megabytes


@asynccontextmanager
async def listening(root, calls=None, metrics=None, **settings):
    """The address of a server in this process, and its engine. `calls` counts the calls in flight."""
    settings = Settings(artifacts=root, models=("tiny-gpt",), provider="cpu", threads=1, tune="off", port=0, **settings)
    metrics, health = metrics or Metrics(), Health()
    repository = Repository(settings, Reporter(health, metrics))
    calls = calls or InFlight("the server is stopping")
    server, port = build_server(settings, repository, metrics, health, calls, Connections())
    await server.start()
    await repository.load_all()
    try:
        yield f"127.0.0.1:{port}", repository.get("tiny-gpt").backend
    finally:
        await server.stop(None)
        await repository.drain()


@asynccontextmanager
async def serving(root):
    """A stub for a server in this process, and the engine of the server."""
    async with listening(root) as (address, engine), grpc.aio.insecure_channel(address) as channel:
        yield AffinityStub(channel), engine


@pytest.fixture
def root(exported):
    return exported("tiny-gpt").parents[1]


def decoder_of(engine):
    return engine._worker._runner.decoder


async def test_a_failed_step_is_an_internal_error_and_the_next_request_is_answered(root):
    async with serving(root) as (stub, engine):
        decode = decoder_of(engine).decode

        def fail_once(*arguments):
            decoder_of(engine).decode = decode
            raise RuntimeError("out of memory, in a place that is not public")

        decoder_of(engine).decode = fail_once
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            [response async for response in stub.Generate(request_of([1, 2, 3], max_tokens=5))]
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "memory" not in failed.value.details()
        assert engine.running_inputs == 0
        assert len(tokens_of([response async for response in stub.Generate(request_of([1, 2, 3], max_tokens=5))])) == 5


async def test_a_cancelled_call_frees_its_slot_before_the_next_step(root):
    async with serving(root) as (stub, engine):
        decode, steps = decoder_of(engine).decode, []
        started, never = threading.Event(), threading.Event()

        def decode_when_cancelled(*arguments):
            started.set()
            (sequence,) = engine._worker._scheduler.running
            while not sequence.cancelled:
                never.wait(0.001)
            steps.append(sequence)
            return decode(*arguments)

        decoder_of(engine).decode = decode_when_cancelled
        call = stub.Generate(request_of([1, 2, 3], max_tokens=50))
        await call.read()
        assert await asyncio.to_thread(started.wait, 30)
        call.cancel()
        await engine._worker.wait_idle()
        assert len(steps) == 1
        assert engine.running_inputs == 0


def large_request(prompts=200):
    """A request whose responses exceed the buffers of a `NARROW` channel, from about ten prompts on.

    The call goes on until its client has read all of them.
    """
    prompts = [Prompt(token_ids=TokenIds(ids=[number])) for number in range(1, prompts + 1)]
    return GenerateRequest(prompts=prompts, max_tokens=60, logprobs=20, ignore_eos=True, temperature=0)


async def test_a_slow_reader_does_not_delay_unloading_and_gets_all_responses(root):
    async with (
        listening(root, model_control="explicit") as (address, _),
        grpc.aio.insecure_channel(address, NARROW) as channel,
        triton_aio.InferenceServerClient(address) as client,
    ):
        slow = AffinityStub(channel).Generate(large_request())
        first = await slow.read()
        await client.unload_model("tiny-gpt")
        assert not slow.done()
        responses = [first]
        while (response := await slow.read()) is not grpc.aio.EOF:
            responses.append(response)
    assert [response.finish_reason for response in responses if response.finish_reason] == ["length"] * 200
