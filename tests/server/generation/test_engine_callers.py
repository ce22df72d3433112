"""Cancelled, slow and expired requests to the engine, a full queue, and the end of the engine."""

import asyncio

import numpy as np
import pytest

from server.admission.queue import RequestContext
from server.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from server.generation.decoder import Decoder
from server.generation.request import Sampling
from tests.continuations import greedy_of
from tests.generating import generate, generate_all
from tests.server.generation.engines import (
    GREEDY,
    EngineEvents,
    engine_with,
    outputs_of,
    padded,
    tokens_of,
)


async def test_a_cancelled_request_frees_its_slot_before_the_next_step(engine_of):
    events = EngineEvents()
    engine, decoder = await engine_with(engine_of, slots=2, observer=events)
    leaving = generate(engine, np.array([1, 2]), Sampling(max_tokens=50, ignore_eos=True), RequestContext())
    await anext(leaving)
    await decoder.decode_started()  # in the first step, alone
    staying = asyncio.create_task(tokens_of(engine, [3], max_tokens=10, ignore_eos=True))
    await asyncio.sleep(0)
    await leaving.aclose()
    decoder.stop_waiting()
    assert len(await staying) == 10
    await engine.drain()
    sizes = [step["sequences"] for step in events.steps if step["kind"] == "decode"]
    assert sizes == [1] * 10  # one step of the cancelled request, nine of the other, none of both
    assert [reason for reason, _ in events.endings] == ["cancelled", "length"]


async def test_a_request_that_is_cancelled_while_it_waits_never_runs(engine_of):
    events = EngineEvents()
    engine, decoder = await engine_with(engine_of, slots=1, observer=events)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=5, ignore_eos=True))
    await decoder.decode_started()
    waiting = asyncio.create_task(tokens_of(engine, [2, 3, 4], max_tokens=5))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    decoder.stop_waiting()
    assert len(await running) == 5
    await engine.drain()
    assert events.drops == ["cancelled"]
    assert [step["tokens"] for step in events.steps if step["kind"] == "prefill"] == [1]


async def test_a_slow_reader_delays_no_other_request_and_gets_all_tokens(engine_of, reference):
    engine = await engine_of()
    slow = generate(engine, np.array([1, 2]), Sampling(max_tokens=30, **GREEDY), RequestContext())
    first = await anext(slow)
    assert len(await tokens_of(engine, [3, 4], max_tokens=40, **GREEDY)) == 40
    found = [first.token_id, *[output.token_id async for output in slow]]
    assert found == greedy_of(reference, [1, 2], 30)


async def test_a_request_whose_deadline_passes_keeps_the_tokens_that_it_has(engine_of):
    now = 0.0

    class Ticking(Decoder):
        """Each step takes a second."""

        def decode(self, *arguments):
            nonlocal now
            now += 1.0
            return super().decode(*arguments)

    engine, got = await engine_of(decoder=Ticking, clock=lambda: now), []

    async def hurried():
        async for output in generate(engine, np.array([1]), Sampling(max_tokens=50), RequestContext(deadline=3.5)):
            got.append(output)

    patient = asyncio.create_task(tokens_of(engine, [2], max_tokens=20, ignore_eos=True))
    with pytest.raises(DeadlineExceeded):
        await hurried()
    assert 1 <= len(got) <= 5
    assert len(await patient) == 20
    with pytest.raises(DeadlineExceeded):
        await outputs_of(engine, [1], RequestContext(deadline=now))


async def test_a_full_queue_refuses_requests_and_says_when_to_retry(engine_of):
    events = EngineEvents()
    engine, decoder = await engine_with(engine_of, slots=1, waiting=1, observer=events)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await decoder.decode_started()
    waiting = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await tokens_of(engine, [1])
    assert refused.value.retry_after_s > 0
    with pytest.raises(Overloaded):
        await engine.logits(*padded([[1]]), RequestContext())
    assert events.refusals == ["overloaded"] * 2
    decoder.stop_waiting()
    assert len(await running) == len(await waiting) == 3


async def test_all_prompts_of_a_request_are_admitted_or_none(engine_of):
    events = EngineEvents()
    engine, decoder = await engine_with(engine_of, slots=1, waiting=3, observer=events)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await decoder.decode_started()
    waiting = asyncio.create_task(tokens_of(engine, [1], max_tokens=3, ignore_eos=True))
    await asyncio.sleep(0)
    three, four = ({f"prompts[{number}]": [1] for number in range(count)} for count in (3, 4))
    with pytest.raises(Overloaded):
        await anext(generate_all(engine, three, Sampling()))
    with pytest.raises(InvalidRequest, match="prompts: found 4 inputs, expected at most 3"):
        await anext(generate_all(engine, four, Sampling()))
    assert (engine.waiting_inputs, events.refusals) == (1, ["overloaded"])
    decoder.stop_waiting()
    assert len(await running) == len(await waiting) == 3


async def test_draining_finishes_requests_in_flight_and_refuses_new_ones(engine_of):
    engine, decoder = await engine_with(engine_of)
    running = asyncio.create_task(tokens_of(engine, [1], max_tokens=5, ignore_eos=True))
    await decoder.decode_started()
    draining = asyncio.create_task(engine.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReady):
        await tokens_of(engine, [1])
    decoder.stop_waiting()
    await draining
    assert len(await running) == 5


async def test_aborted_requests_end_as_cancelled_with_the_tokens_so_far(engine_of):
    engine, decoder = await engine_with(engine_of, slots=1)
    running = asyncio.create_task(outputs_of(engine, [1], max_tokens=50, ignore_eos=True))
    await decoder.decode_started()
    waiting = asyncio.create_task(outputs_of(engine, [2], max_tokens=50, ignore_eos=True))
    await asyncio.sleep(0)
    engine.abort()
    decoder.stop_waiting()
    outputs, never = await running, await waiting
    assert (outputs[-1].finish_reason, outputs[-1].token_id) == ("cancelled", None)
    assert len(outputs) <= 4
    assert [output.finish_reason for output in never] == ["cancelled"]
