"""What a step that failed, or a prompt that was never read to its end, leaves in the cache: nothing that misleads."""

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


class Treacherous(CapturingDecoder):
    """A decode step that fails leaves the keys and values of another text where those of its requests were."""

    failing = False

    def decode(self, token_ids, lengths):
        if not self.failing:
            return super().decode(token_ids, lengths)
        self.failing = False
        for slot in range(self.running):
            self.prefill(slot, np.full(40, 77), 0)
        raise RuntimeError("the memory is gone")


async def test_what_a_failed_decode_has_spoilt_is_never_used_again_and_what_it_has_not_is(engine_of, reference):
    decoders = []

    def make(*arguments):
        decoders.append(Treacherous(*arguments))
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


class Halting(Decoder):
    """Reads prompts only as far as it is let, chunk by chunk."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.arrived, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def prefill(self, *arguments):
        self.arrived.release()
        self.go.acquire()
        return super().prefill(*arguments)


async def test_as_much_of_a_prompt_as_was_read_before_its_caller_left_is_used_again(engine_of, reference):
    decoders = []

    def make(*arguments):
        decoders.append(Halting(*arguments))
        return decoders[0]

    engine = await engine_of(slots=2, chunk_tokens=8, decoder=make, min_shared_tokens=4)
    (decoder,) = decoders
    leaving = asyncio.create_task(tokens_of(engine, PROMPT, max_tokens=5, **GREEDY))
    decoder.go.release()
    for _ in range(2):  # the first chunk is read, the second is about to be
        await asyncio.to_thread(decoder.arrived.acquire)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    decoder.go.release(100)
    for cached in (16, len(PROMPT) - 2):
        outputs = await outputs_of(engine, PROMPT, max_tokens=20, **GREEDY)
        assert [output.token_id for output in outputs] == greedy_of(reference, PROMPT, 20)
        assert outputs[-1].usage.cached_tokens == cached
