"""The engine when a run, a copy or the plan fails."""

import asyncio
import threading

import pytest

from server.admission.queue import RequestContext
from server.generation.decoder import Decoder
from server.generation.worker import StepFailed
from tests.continuations import greedy_of
from tests.server.generation.engines import (
    GREEDY,
    EngineEvents,
    padded,
    tokens_of,
)


async def test_a_step_that_fails_fails_only_the_requests_in_it(engine_of, reference):
    all_submitted = threading.Event()

    class Flaky(Decoder):
        """The fourth decode step fails."""

        decodes = 0

        def prefill(self, *arguments):
            all_submitted.wait()
            return super().prefill(*arguments)

        def decode(self, *arguments):
            self.decodes += 1
            if self.decodes == 4:
                raise RuntimeError("out of memory")
            return super().decode(*arguments)

    events = EngineEvents()
    engine = await engine_of(slots=2, decoder=Flaky, observer=events)
    asked = [[1], [2], [3], [4]]
    answers = [asyncio.create_task(tokens_of(engine, prompt, max_tokens=10, **GREEDY)) for prompt in asked]
    await asyncio.sleep(0)
    all_submitted.set()
    found = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(answer) for answer in found] == [StepFailed, StepFailed, list, list]
    assert found[2:] == [greedy_of(reference, prompt, 10) for prompt in asked[2:]]
    assert events.failures == [2]


async def test_a_failed_copy_fails_all_running_requests_and_no_later_one(engine_of, reference):
    class FailingCopies(Decoder):
        """Every copy fails."""

        def __init__(self, session, cache):
            super().__init__(session, cache)
            cache.copy = self.fail

        def fail(self, **where):
            raise RuntimeError("a failed copy")

    engine, prompt = await engine_of(slots=2, decoder=FailingCopies, min_shared_tokens=4), list(range(1, 20))
    expected = greedy_of(reference, prompt, 9)
    assert await tokens_of(engine, prompt, max_tokens=9, **GREEDY) == expected
    with pytest.raises(StepFailed):
        await tokens_of(engine, prompt, max_tokens=9, **GREEDY)
    assert await tokens_of(engine, prompt, max_tokens=9, **GREEDY) == expected


async def test_a_bug_in_the_plan_fails_all_present_requests_and_no_later_one(engine_of, reference):
    all_submitted = threading.Event()

    class Failing(Decoder):
        """`padded_batch_size` fails once, which fails the plan."""

        failed = False

        def prefill(self, *arguments):
            all_submitted.wait()
            return super().prefill(*arguments)

        def padded_batch_size(self, sequences):
            if sequences == 2 and not self.failed:
                self.failed = True
                raise RuntimeError("a bug")
            return sequences

    events = EngineEvents()
    engine = await engine_of(slots=2, decoder=Failing, observer=events)
    asked = [tokens_of(engine, [number], max_tokens=9, **GREEDY) for number in range(1, 6)]
    answers = asyncio.gather(*asked, engine.logits(*padded([[1]]), RequestContext()), return_exceptions=True)
    await asyncio.sleep(0)
    all_submitted.set()
    found = await answers
    assert [type(answer) for answer in found[:5]] == [StepFailed] * 5
    assert (events.failures, engine.waiting_inputs, engine.running_inputs) == ([5], 0, 0)
    assert await tokens_of(engine, [7, 8], max_tokens=9, **GREEDY) == greedy_of(reference, [7, 8], 9)
    assert len(await engine.logits(*padded([[1]]), RequestContext())) == 1


async def test_a_prefill_that_fails_fails_only_its_request(engine_of):
    class FailingPrefill(Decoder):
        """Fails on token 13."""

        def prefill(self, slot, token_ids, past):
            if 13 in token_ids:
                raise RuntimeError("a failed prefill")
            return super().prefill(slot, token_ids, past)

    engine = await engine_of(decoder=FailingPrefill)
    found = await asyncio.gather(
        *(tokens_of(engine, [token], max_tokens=5, ignore_eos=True) for token in (1, 13, 2)), return_exceptions=True
    )
    assert [type(answer) for answer in found] == [list, StepFailed, list]
