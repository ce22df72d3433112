"""Requests are distributed over engines on several devices; here over two engines on the CPU."""

import asyncio
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from server.admission.queue import RequestContext
from server.errors import NotReady
from server.generation.replicas import EngineReplicas
from server.generation.request import Sampling
from server.observability.observer import NoOpObserver
from tests.generating import generate, generate_all
from tests.server.generation.engines import padded

GREEDY = Sampling(temperature=0.0, ignore_eos=True, max_tokens=12)


async def tokens_of(engine, prompt):
    return [step.token_id async for step in generate(engine, prompt, GREEDY)]


class EndRecorder(NoOpObserver):
    """Records the finish reasons."""

    def __init__(self):
        self.endings = []

    def finished(self, *, reason, usage):
        self.endings.append(reason)


@pytest.fixture
def observers():
    return EndRecorder(), EndRecorder()


@pytest.fixture
async def engines(engine_of, observers):
    return [await engine_of(slots=4, observer=observer) for observer in observers]


async def test_requests_go_to_the_least_loaded_engine(engines, observers, prompts):
    both, asked = EngineReplicas(engines), prompts(8)
    answers = await asyncio.gather(*(tokens_of(both, prompt) for prompt in asked))
    assert [len(observer.endings) for observer in observers] == [4, 4]
    assert answers == [await tokens_of(engines[0], prompt) for prompt in asked]


async def test_the_prompts_of_one_request_are_distributed_over_the_engines(engines, observers, prompts):
    both, asked = EngineReplicas(engines), {str(number): prompt for number, prompt in enumerate(prompts(6))}
    with both.reserve(6, field="prompts"):
        assert [engine.waiting_inputs for engine in engines] == [3, 3]
    found = defaultdict(list)
    async for name, step in generate_all(both, asked, GREEDY):
        found[name].append(step.token_id)
    assert [len(observer.endings) for observer in observers] == [3, 3]
    assert found == {name: await tokens_of(engines[0], prompt) for name, prompt in asked.items()}


async def test_logits_are_equal_on_all_engines(engines, prompts):
    texts = padded(prompts(3))
    found, expected = (
        await EngineReplicas(engines).logits(*texts, RequestContext()),
        await engines[1].logits(*texts, RequestContext()),
    )
    assert np.array_equal(found, expected)


async def test_abort_cancels_the_requests_of_all_engines(engines, prompts):
    both = EngineReplicas(engines)
    endless = replace(GREEDY, max_tokens=50)

    async def last_of(prompt):
        return [step async for step in generate(both, prompt[:5], endless)][-1].finish_reason

    running = [asyncio.create_task(last_of(prompt)) for prompt in prompts(6)]
    await asyncio.sleep(0)
    both.abort()
    assert set(await asyncio.gather(*running)) == {"cancelled"}


async def test_draining_finishes_the_requests_of_all_engines_and_refuses_new_ones(engines, prompts):
    both = EngineReplicas(engines)
    await both.start()
    running = [asyncio.create_task(tokens_of(both, prompt)) for prompt in prompts(6)]
    await asyncio.sleep(0)
    await both.drain()
    assert [len(await task) for task in running] == [12] * 6
    for engine in (both, *engines):
        with pytest.raises(NotReady):
            await tokens_of(engine, prompts(1)[0])
