"""The prefix cache after a failed step, and after a prompt that was cancelled during its prefill."""

import asyncio
import threading

import numpy as np
import pytest

from server.generation.cuda_graphs import CapturingDecoder
from server.generation.decoder import Decoder
from server.generation.worker import StepFailed
from tests.continuations import greedy_of
from tests.server.generation.engines import GREEDY, outputs_of, tokens_of

PROMPT = list(range(1, 31))


class CorruptingDecoder(CapturingDecoder):
    """A failing decode step overwrites the slots of its sequences with another text."""

    failing = False

    def decode(self, token_ids, lengths):
        if not self.failing:
            return super().decode(token_ids, lengths)
        self.failing = False
        for slot in range(self.running):
            self.prefill(slot, np.full(40, 77), 0)
        raise RuntimeError("a failed step")


async def test_the_prompts_of_a_failed_step_are_not_reused_and_other_prompts_are(engine_of, reference):
    decoders = []

    def make(*arguments):
        decoders.append(CorruptingDecoder(*arguments))
        return decoders[0]

    engine = await engine_of(slots=4, decoder=make, min_shared_tokens=4)
    (decoder,) = decoders
    other = [100 + token for token in PROMPT]
    assert await tokens_of(engine, other, max_tokens=5, **GREEDY) == greedy_of(reference, other, 5)
    decoder.failing, decoder.running = True, 1
    with pytest.raises(StepFailed):
        await tokens_of(engine, PROMPT, max_tokens=20, **GREEDY)
    for prompt, cached in ((PROMPT, 0), (other, len(other) - 2), (PROMPT, len(PROMPT) - 2)):
        outputs = await outputs_of(engine, prompt, max_tokens=20, **GREEDY)
        assert [output.token_id for output in outputs] == greedy_of(reference, prompt, 20)
        assert outputs[-1].usage.cached_tokens == cached


class HeldPrefillDecoder(Decoder):
    """Waits before each chunk of a prompt until the test releases it."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.arrived, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def prefill(self, *arguments):
        self.arrived.release()
        self.go.acquire()
        return super().prefill(*arguments)


async def test_the_computed_part_of_a_cancelled_prompt_is_reused(engine_of, reference):
    decoders = []

    def make(*arguments):
        decoders.append(HeldPrefillDecoder(*arguments))
        return decoders[0]

    engine = await engine_of(slots=2, chunk_tokens=8, decoder=make, min_shared_tokens=4)
    (decoder,) = decoders
    leaving = asyncio.create_task(tokens_of(engine, PROMPT, max_tokens=5, **GREEDY))
    decoder.go.release()
    for _ in range(2):  # the first chunk is computed, the second waits
        await asyncio.to_thread(decoder.arrived.acquire)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    decoder.go.release(100)
    for cached in (16, len(PROMPT) - 2):
        outputs = await outputs_of(engine, PROMPT, max_tokens=20, **GREEDY)
        assert [output.token_id for output in outputs] == greedy_of(reference, PROMPT, 20)
        assert outputs[-1].usage.cached_tokens == cached
