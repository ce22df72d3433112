"""What callers see, over gRPC, when a step fails; and what those do to others who vanish, or do not read."""

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
from server.rpc.health import Health
from server.rpc.server import build_server
from server.serving import Reporter
from tests.continuations import request_of, tokens_of

NARROW = [("grpc.http2.bdp_probe", 0)]  # else gRPC finds out that a network inside a machine holds megabytes


@asynccontextmanager
async def listening(root, calls=None, metrics=None, **settings):
    """The address of a server in this process, and the engine behind it. `calls` are told what is under way."""
    settings = Settings(artifacts=root, models=("tiny-gpt",), provider="cpu", threads=1, port=0, **settings)
    metrics, health = metrics or Metrics(), Health()
    repository = Repository(settings, Reporter(health, metrics))
    calls = calls or InFlight("the server is stopping")
    server, port = build_server(settings, repository, metrics, health, calls)
    await server.start()
    await repository.load_all()
    try:
        yield f"127.0.0.1:{port}", repository.get("tiny-gpt").backend
    finally:
        await server.stop(None)
        await repository.drain()


@asynccontextmanager
async def serving(root):
    """A stub of it."""
    async with listening(root) as (address, engine), grpc.aio.insecure_channel(address) as channel:
        yield AffinityStub(channel), engine


@pytest.fixture
def root(exported):
    return exported("tiny-gpt").parents[1]


def decoder_of(engine):
    return engine._worker._runner.decoder


async def test_a_step_that_fails_is_an_internal_error_and_the_next_request_is_answered(root):
    async with serving(root) as (stub, engine):
        decode = decoder_of(engine).decode

        def fail_once(*arguments):
            decoder_of(engine).decode = decode
            raise RuntimeError("out of memory, at a place nobody needs to know")

        decoder_of(engine).decode = fail_once
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            [piece async for piece in stub.Generate(request_of([1, 2, 3], max_tokens=5))]
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        assert "memory" not in failed.value.details()
        assert engine.running_inputs == 0
        assert len(tokens_of([piece async for piece in stub.Generate(request_of([1, 2, 3], max_tokens=5))])) == 5


async def test_a_caller_who_vanishes_frees_the_slot_by_the_next_step(root):
    async with serving(root) as (stub, engine):
        decode, steps, waiting = decoder_of(engine).decode, [], threading.Event()

        def until_it_is_known(*arguments):
            (sequence,) = engine._worker._scheduler.running
            while not sequence.cancelled:
                waiting.wait(0.001)
            steps.append(sequence)
            return decode(*arguments)

        decoder_of(engine).decode = until_it_is_known
        call = stub.Generate(request_of([1, 2, 3], max_tokens=50))
        await call.read()
        call.cancel()
        await engine._worker.idle()
        assert len(steps) == 1
        assert engine.running_inputs == 0


def much():
    """A request whose answer no buffer of gRPC holds, if it is `NARROW`."""
    prompts = [Prompt(token_ids=TokenIds(ids=[number])) for number in range(1, 201)]
    return GenerateRequest(prompts=prompts, max_tokens=60, logprobs=20, ignore_eos=True, temperature=0)


async def test_a_model_goes_though_a_client_does_not_read_and_the_client_gets_everything(root):
    async with (
        listening(root) as (address, _),
        grpc.aio.insecure_channel(address, NARROW) as channel,
        triton_aio.InferenceServerClient(address) as client,
    ):
        slow = AffinityStub(channel).Generate(much())
        first = await slow.read()
        await client.unload_model("tiny-gpt")
        assert not slow.done()
        pieces = [first]
        while (piece := await slow.read()) is not grpc.aio.EOF:
            pieces.append(piece)
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"] * 200
