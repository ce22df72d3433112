"""`Engine.logits`: logits of whole texts, which run between the steps of generation."""

import asyncio
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import torch

from server.admission.queue import RequestContext
from server.errors import DeadlineExceeded
from server.generation.decoder import Decoder
from server.generation.engine import padded_batches
from server.generation.request import Sampling
from tests.generating import generate
from tests.server.generation.engines import (
    EngineEvents,
    HeldDecoder,
    engine_with,
    padded,
    tokens_of,
)


@pytest.mark.parametrize("forward_tokens", [1024, 21])
async def test_logits_equal_those_of_torch_for_texts_of_any_length(
    engine_of, prompts, reference, context_length, forward_tokens
):
    engine, texts = await engine_of(forward_tokens=forward_tokens), prompts(20, longest=60)
    texts.append(np.arange(1, context_length + 1))
    generating = asyncio.create_task(tokens_of(engine, texts[0], max_tokens=4))
    found = await engine.logits(*padded(texts), RequestContext())
    await generating
    for text, logits in zip(texts, found, strict=True):
        with torch.no_grad():
            expected = reference(torch.tensor(text)[None]).logits[0].numpy()
        assert np.abs(logits[: len(text)] - expected).max() / expected.std() < 1e-4
        assert not logits[len(text) :].any()


class RunRecorder(Decoder):
    """Records the runs: "decode" for a step, and for a chunk of a text the first token of the chunk."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.runs = []

    def decode(self, *arguments):
        self.runs.append("decode")
        return super().decode(*arguments)

    def _run_without_cache(self, input_ids, *arguments, **options):
        self.runs.append(int(input_ids[0, 0]))
        return super()._run_without_cache(input_ids, *arguments, **options)


class PausingDecoder(RunRecorder):
    """Waits before a decode step while `paused` returns True."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.paused, self._never = lambda: True, threading.Event()

    def decode(self, *arguments):
        while self.paused():
            self._never.wait(0.001)
        return super().decode(*arguments)


async def test_a_stream_continues_between_the_chunks_of_a_long_text(engine_of, context_length):
    engine, decoder = await engine_with(engine_of, PausingDecoder, forward_tokens=8)
    streaming = generate(
        engine, np.array([1]), Sampling(max_tokens=context_length - 1, ignore_eos=True), RequestContext()
    )
    await anext(streaming)
    reading = asyncio.create_task(engine.logits(*padded([np.arange(1, 65)]), RequestContext()))
    decoder.paused = lambda: not (engine._worker._forward_jobs or reading.done())  # until the next chunk is queued
    await reading
    chunks = [decoder.runs.index(token) for token in range(1, 65, 8)]
    assert all("decode" in decoder.runs[one:other] for one, other in pairwise(chunks))
    await streaming.aclose()


@pytest.mark.parametrize(("texts_in_memory", "first_runs"), [(2, [1, 31]), (1, [1, 9, 17, 31])])
async def test_texts_wait_while_too_many_logits_are_in_memory(
    engine_of, monkeypatch, vocabulary, texts_in_memory, first_runs
):
    monkeypatch.setattr("server.generation.engine.MAX_LOGITS_IN_FLIGHT", texts_in_memory * 24 * vocabulary)
    engine, decoder = await engine_with(engine_of, RunRecorder, forward_tokens=8)
    texts = [np.arange(first, first + 24) for first in (1, 31, 101)]
    await asyncio.gather(*(engine.logits(*padded([text]), RequestContext()) for text in texts))
    chunks = [[first, first + 8, first + 16] for first in (1, 31, 101)]
    assert sorted(decoder.runs) == sum(chunks, [])
    assert decoder.runs[: len(first_runs)] == first_runs
    before_last_text = decoder.runs[: decoder.runs.index(101)]
    assert sum(text[-1] in before_last_text for text in chunks) >= 3 - texts_in_memory
    assert engine.waiting_inputs == 0


def test_a_batch_of_texts_has_at_most_so_many_tokens_with_padding():
    texts = [np.zeros(length) for length in (5, 5, 10, 30, 1)]
    assert [[len(text) for text in batch] for batch in padded_batches(texts, 20)] == [[5, 5], [10], [30], [1]]


class HeldForwardDecoder(HeldDecoder):
    """Also waits before each forward run."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.forward_arrived, self.forward_go = threading.Semaphore(0), threading.Semaphore(0)

    def _run_without_cache(self, *arguments, **options):
        self.forward_arrived.release()
        self.forward_go.acquire()
        return super()._run_without_cache(*arguments, **options)


async def test_a_request_that_is_cancelled_during_a_forward_run_is_in_no_later_step(engine_of):
    events = EngineEvents()
    engine, decoder = await engine_with(engine_of, HeldForwardDecoder, observer=events)
    leaving = generate(engine, [1, 2], Sampling(max_tokens=50, ignore_eos=True))
    await anext(leaving)
    await decoder.decode_started()
    raw = asyncio.create_task(engine.logits(*padded([[1]]), RequestContext()))
    await asyncio.sleep(0)
    decoder.go.release()
    await asyncio.to_thread(decoder.forward_arrived.acquire)
    await leaving.aclose()
    decoder.forward_go.release()
    await raw
    decoder.stop_waiting()
    await engine.drain()
    assert [step["kind"] for step in events.steps] == ["prefill", "decode"]


async def test_a_deadline_ends_the_wait_for_logits(engine_of, monkeypatch):
    monkeypatch.setattr("server.generation.engine.MAX_LOGITS_IN_FLIGHT", 1)
    engine, decoder = await engine_with(engine_of, HeldForwardDecoder)
    first, *others = (
        asyncio.create_task(engine.logits(*padded([[1]]), RequestContext(deadline=deadline)))
        for deadline in (None, time.monotonic() + 0.05, None)
    )
    await asyncio.to_thread(decoder.forward_arrived.acquire)
    with pytest.raises(DeadlineExceeded):
        await others[0]
    decoder.forward_go.release(2)
    assert len(await first) == len(await others[1]) == 1
    assert engine.waiting_inputs == 0
