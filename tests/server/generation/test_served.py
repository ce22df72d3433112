"""Generation on a real server, over gRPC."""

import asyncio
import re
import threading

import grpc
import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient, InferInput

from protos.affinity_pb2 import GenerateRequest, Prompt
from protos.affinity_pb2_grpc import AffinityStub
from server.client import AsyncClient, Client
from tests.continuations import continued, greedy_of, tokens_of
from tests.server.generation.test_failures import decoder_of, listening
from tests.server.generation.test_slow_clients import until
from tests.serving import served

GREEDY = {"model": "tiny-gpt", "temperature": 0}


@pytest.fixture(scope="module")
def serve(exported):
    """Makes servers of the tiny GPT with these settings."""
    root = exported("tiny-gpt").parents[1]

    def make(*settings: str):
        flags = [flag for setting in settings for flag in ("--set", f"tiny-gpt.{setting}")]
        return served(root, "--models", "tiny-gpt", *flags)

    return make


@pytest.fixture(scope="module")
def server(serve):
    with serve() as running:
        yield running


async def test_greedy_tokens_equal_those_of_transformers_for_50_prompts_at_random_times(server, prompts, reference):
    asked = prompts(50)
    found = await continued(server.target, asked, max_tokens=20, **GREEDY)
    assert [tokens_of(responses) for responses in found] == [greedy_of(reference, ids, 20) for ids in asked]


@pytest.mark.parametrize(("switch", "least", "most"), [("on", 300, 1000), ("off", 0, 0)])
async def test_common_prefixes_are_cached_if_the_prefix_cache_is_on(serve, prompts, reference, switch, least, most):
    asked = [np.concatenate([np.arange(1, 31), own[:20]]) for own in prompts(20)]
    with serve(f"prefix_cache={switch}") as running:
        found = await continued(running.target, asked, max_tokens=5, **GREEDY)
    assert [tokens_of(responses) for responses in found] == [greedy_of(reference, ids, 5) for ids in asked]
    assert least <= sum(responses[-1].usage.cached_tokens for responses in found) <= most


async def test_messages_have_as_many_tokens_as_the_operator_sets_and_the_same_text_in_both_protocols(server, serve):
    asked = {"max_tokens": 15, "temperature": 0.0, "ignore_eos": True}
    with Client(server.target) as client:
        whole = "".join(response.text for response in client.generate("A list is", **asked))
    with serve("stream_interval=4") as running:
        with Client(running.target) as client:
            responses = list(client.generate("A list is", logprobs=1, **asked))
        async with AsyncClient(running.target) as client:
            texts = [response.text async for response in client.generate("A list is", **asked)]
        parts = [text async for text in inferred(running.target, "A list is", asked)]
    counts = [len(response.token_ids) for response in responses]
    assert counts[0] >= 1
    assert all(count >= 4 for count in counts[1:-1])
    assert len(counts) <= 5
    assert counts == [len(response.logprobs) for response in responses]
    assert (sum(counts), responses[-1].usage.completion_tokens) == (15, 15)
    assert "".join(response.text for response in responses) == "".join(texts) == "".join(parts) == whole
    assert len(parts) <= 5


async def inferred(target, text, parameters):
    """The parts of a text that ModelStreamInfer returns."""
    tensor = InferInput("text_input", [1], "BYTES").set_data_from_numpy(np.array([text.encode()], object))

    async def requests():
        yield {"model_name": "tiny-gpt", "inputs": [tensor], "parameters": parameters}

    async with InferenceServerClient(target) as client:
        async for result, error in client.stream_infer(requests()):
            assert error is None
            yield result.as_numpy("text_output")[0].decode()


async def test_a_request_with_a_higher_priority_starts_before_waiting_ones(exported):
    """A level is worth a second of waiting, so that a busy machine changes nothing."""
    root, ended, all_wait = exported("tiny-gpt").parents[1], [], threading.Event()

    async def ask(stub, priority, *, prompts=1):
        request = GenerateRequest(
            prompts=[Prompt(text="A")] * prompts, max_tokens=20, ignore_eos=True, priority=priority
        )
        async for _ in stub.Generate(request):
            pass
        ended.append(priority)

    async with (
        listening(root, overrides={"tiny-gpt": {"slots": 1}}) as (address, engine),
        grpc.aio.insecure_channel(address) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        decode = decoder_of(engine).decode
        decoder_of(engine).decode = lambda *arguments: all_wait.wait(60) and decode(*arguments)
        tasks.create_task(ask(AffinityStub(channel), 1000, prompts=9))
        await until(lambda: (engine.running_inputs, engine.waiting_inputs) == (1, 8))
        for priority in (2000, 1):
            tasks.create_task(ask(AffinityStub(channel), priority))
        await until(lambda: engine.waiting_inputs == 8 + 2)
        all_wait.set()
    assert ended == [1, 1000, 2000]


def test_the_server_logs_the_memory_of_the_cache_at_start(serve):
    with serve("slots=12") as running:
        expected = (
            r"tiny-gpt: 8 slots of 64 tokens, .* MB each: .* MB of keys and values at first, at most .* in 12 slots"
        )
        assert re.search(expected, running.banner), running.banner


def test_the_server_does_not_start_with_more_slots_than_memory_and_says_how_many_would_fit(serve):
    with (
        pytest.raises(
            AssertionError, match=r"tiny-gpt: found 100000000 slots .* expected at most [0-9]+: there is room"
        ),
        serve("slots=100000000"),
    ):
        pass
