"""What callers do to others, over gRPC: one of whose prompts fails, one that is killed, one that never reads."""

import asyncio
import sys
import threading

import grpc
import pytest

from protos.affinity_pb2 import GenerateRequest, Prompt, TokenIds
from protos.affinity_pb2_grpc import AffinityStub
from server.admission.in_flight import InFlight
from tests.continuations import greedy_of, request_of, tokens_of
from tests.server.generation.test_failures import NARROW, decoder_of, listening, much, serving
from tests.serving import ROOT


@pytest.fixture
def root(exported):
    return exported("tiny-gpt").parents[1]


class Watched:
    """Lets decode steps begin, from a moment on, only when all who are in them are known to have left."""

    def __init__(self, engine):
        self.steps_after, self.left = 0, threading.Event()
        self._engine, self._decode = engine, decoder_of(engine).decode
        self._waiting = threading.Event()
        decoder_of(engine).decode = self.decode

    def decode(self, *arguments):
        if self.left.is_set():
            while not all(sequence.cancelled for sequence in self._engine._worker._scheduler.running):
                self._waiting.wait(0.001)
            self.steps_after += 1
        return self._decode(*arguments)


async def test_one_prompt_that_fails_ends_its_call_at_once_and_no_other(root, reference):
    async with serving(root) as (stub, engine):
        watched, prefill = Watched(engine), decoder_of(engine).prefill

        def allergic(slot, token_ids, past):
            if 13 in token_ids:
                watched.left.set()
                raise RuntimeError("not this one")
            return prefill(slot, token_ids, past)

        decoder_of(engine).prefill = allergic
        prompts = [Prompt(token_ids=TokenIds(ids=[1, 2, token])) for token in (3, 4, 13, 5, 6)]
        request = GenerateRequest(prompts=prompts, max_tokens=60, ignore_eos=True)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            [piece async for piece in stub.Generate(request)]
        assert failed.value.code() is grpc.StatusCode.INTERNAL
        await engine._worker.idle()
        assert watched.steps_after <= 1
        assert engine.running_inputs == engine.waiting_inputs == engine.waiting_tokens == 0
        watched.left.clear()
        again = [piece async for piece in stub.Generate(request_of([1, 2, 3], max_tokens=20, temperature=0))]
        assert tokens_of(again) == greedy_of(reference, [1, 2, 3], 20)


async def test_a_client_whose_process_is_killed_frees_its_slot_by_the_next_step(root, reference):
    async with listening(root) as (address, engine):
        watched = Watched(engine)
        watched.left.set()
        asked = ["--server", address, "--min-tokens", "60", "--max-tokens", "60", "A list is"]
        command = [sys.executable, "-m", "server.client", "generate", *asked]
        client = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert await client.stdout.read(1)  # its first token is there, and the step for the second waits
        client.kill()
        await client.communicate()
        await engine._worker.idle()
        assert watched.steps_after == 1
        assert engine.running_inputs == 0
        watched.left.clear()
        async with grpc.aio.insecure_channel(address) as channel:
            asked = AffinityStub(channel).Generate(request_of([1, 2, 3], max_tokens=20, temperature=0))
            assert tokens_of([piece async for piece in asked]) == greedy_of(reference, [1, 2, 3], 20)


@pytest.mark.parametrize("then", ["reads", "leaves"])
async def test_a_client_that_does_not_read_holds_up_nobody_and_gets_everything_or_leaves_nothing(root, reference, then):
    calls = InFlight("the server is stopping")
    async with listening(root, calls) as (address, engine), grpc.aio.insecure_channel(address, NARROW) as its_own:
        silent = AffinityStub(its_own).Generate(much())
        await silent.initial_metadata()  # its first tokens are on the way
        async with grpc.aio.insecure_channel(address) as channel:
            asked = {"max_tokens": 30, "temperature": 0}
            others = [AffinityStub(channel).Generate(request_of([number], **asked)) for number in range(1, 9)]
            for number, other in enumerate(others, start=1):
                assert tokens_of([piece async for piece in other]) == greedy_of(reference, [number], 30)
        await engine._worker.idle()
        assert engine.running_inputs == engine.waiting_inputs == 0
        assert calls.count == 1  # gRPC takes no more of its answer
        if then == "leaves":
            silent.cancel()
        else:
            assert_complete([piece async for piece in silent], reference)
        assert await calls.wait_idle(60)


def assert_complete(pieces, reference):
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == ["length"] * 200
    assert sum(len(piece.logprobs) for piece in pieces) == 200 * 60
    assert len(pieces) < 200 * 60 / 4  # what waited came in few
    for number in (1, 100, 200):
        its = [piece for piece in pieces if piece.index == number - 1]
        assert tokens_of(its) == greedy_of(reference, [number], 60)
