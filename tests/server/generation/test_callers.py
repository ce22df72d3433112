"""Clients that must not affect others, over gRPC: with a failing prompt, killed, or not reading."""

import asyncio
import sys
import threading

import grpc
import pytest

from protos.affinity_pb2 import GenerateRequest, Prompt, TokenIds
from protos.affinity_pb2_grpc import AffinityStub
from server.admission.in_flight import InFlight
from tests.continuations import greedy_of, request_of, tokens_of
from tests.server.generation.test_failures import NARROW, decoder_of, large_request, listening, serving
from tests.serving import ROOT


@pytest.fixture
def root(exported):
    return exported("tiny-gpt").parents[1]


class CancellationBarrier:
    """From the event `left` on, decode steps wait until all running sequences are cancelled. Counts these steps."""

    def __init__(self, engine):
        self.steps_after, self.left, self.started = 0, threading.Event(), threading.Event()
        self._engine, self._decode = engine, decoder_of(engine).decode
        self._never = threading.Event()
        decoder_of(engine).decode = self.decode

    def decode(self, *arguments):
        if self.left.is_set():
            self.started.set()
            while not all(sequence.cancelled for sequence in self._engine._worker._scheduler.running):
                self._never.wait(0.001)
            self.steps_after += 1
        return self._decode(*arguments)


async def test_a_failing_prompt_ends_its_call_at_once_and_no_other_call(root, reference):
    async with serving(root) as (stub, engine):
        barrier, prefill = CancellationBarrier(engine), decoder_of(engine).prefill

        def fail_on_13(slot, token_ids, past):
            if 13 in token_ids:
                barrier.left.set()
                raise RuntimeError("a failed prefill")
            return prefill(slot, token_ids, past)

        decoder_of(engine).prefill = fail_on_13
        prompts = [Prompt(token_ids=TokenIds(ids=[1, 2, token])) for token in (3, 4, 13, 5, 6)]
        request = GenerateRequest(prompts=prompts, max_tokens=60, ignore_eos=True)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            [response async for response in stub.Generate(request)]
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        await engine._worker.wait_idle()
        assert barrier.steps_after <= 1
        assert engine.running_inputs == engine.waiting_inputs == engine.waiting_tokens == 0
        barrier.left.clear()
        again = [response async for response in stub.Generate(request_of([1, 2, 3], max_tokens=20, temperature=0))]
        assert tokens_of(again) == greedy_of(reference, [1, 2, 3], 20)


async def test_killing_a_client_frees_its_slot_before_the_next_step(root, reference):
    async with listening(root) as (address, engine):
        barrier = CancellationBarrier(engine)
        barrier.left.set()
        asked = ["--server", address, "--min-tokens", "60", "--max-tokens", "60", "A list is"]
        command = [sys.executable, "-m", "server.client", "generate", *asked]
        client = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert await client.stdout.read(1)  # the first token
        assert await asyncio.to_thread(barrier.started.wait, 30)  # the step for the second token
        client.kill()
        await client.communicate()
        await engine._worker.wait_idle()
        assert barrier.steps_after == 1
        assert engine.running_inputs == 0
        barrier.left.clear()
        async with grpc.aio.insecure_channel(address) as channel:
            asked = AffinityStub(channel).Generate(request_of([1, 2, 3], max_tokens=20, temperature=0))
            assert tokens_of([response async for response in asked]) == greedy_of(reference, [1, 2, 3], 20)


@pytest.mark.parametrize("then", ["read", "cancel"])
async def test_a_client_that_does_not_read_delays_no_other_and_can_still_read_all_or_cancel(root, reference, then):
    calls = InFlight("the server is stopping")
    async with listening(root, calls) as (address, engine), grpc.aio.insecure_channel(address, NARROW) as own_channel:
        silent = AffinityStub(own_channel).Generate(large_request())
        await silent.initial_metadata()  # the server has accepted the call
        async with grpc.aio.insecure_channel(address) as channel:
            asked = {"max_tokens": 30, "temperature": 0}
            others = [AffinityStub(channel).Generate(request_of([number], **asked)) for number in range(1, 9)]
            for number, other in enumerate(others, start=1):
                assert tokens_of([response async for response in other]) == greedy_of(reference, [number], 30)
        await engine._worker.wait_idle()
        assert engine.running_inputs == engine.waiting_inputs == 0
        assert calls.count == 1  # gRPC buffers no more of its responses
        if then == "cancel":
            silent.cancel()
        else:
            assert_complete([response async for response in silent], reference)
        assert await calls.wait_idle(60)


def assert_complete(responses, reference):
    assert [response.finish_reason for response in responses if response.finish_reason] == ["length"] * 200
    assert sum(len(response.logprobs) for response in responses) == 200 * 60
    assert len(responses) < 200 * 60 / 4  # tokens that waited were merged
    for number in (1, 100, 200):
        own = [response for response in responses if response.index == number - 1]
        assert tokens_of(own) == greedy_of(reference, [number], 60)
