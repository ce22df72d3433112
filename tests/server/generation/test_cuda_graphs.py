"""Steps of few numbers of rows, as they are captured on CUDA, rehearsed on the CPU: the same answers."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from server.errors import NotEnoughMemory
from server.generation import cuda_graphs
from server.generation.cache import SlotCache
from server.generation.cuda_graphs import CapturingDecoder, layout_of
from server.generation.decoder import Decoder
from server.generation.device_memory import HostMemory
from server.runtime.capture_lock import CaptureLock
from tests.continuations import greedy_of
from tests.server.generation.engines import GREEDY, outputs_of, tokens_of


class Recording(CapturingDecoder):
    """Writes down how many rows ran."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.rows: list[int] = []

    def decode(self, token_ids, lengths):
        self.rows.append(len(token_ids))
        return super().decode(token_ids, lengths)


async def test_steps_of_a_few_numbers_of_rows_give_the_tokens_of_steps_of_any(engine_of, prompts, reference):
    decoders = []

    def make(*arguments):
        decoders.append(Recording(*arguments))
        return decoders[0]

    engine, asked = await engine_of(slots=6, decoder=make), prompts(24)
    found = await asyncio.gather(*(tokens_of(engine, prompt, max_tokens=9, **GREEDY) for prompt in asked))
    assert found == [greedy_of(reference, prompt, 9) for prompt in asked]
    assert sorted(decoders[0].rows[:4]) == [1, 2, 4, 6]  # before anybody was let in
    assert {4, 6} <= set(decoders[0].rows[4:]) <= {1, 2, 4, 6}


@pytest.mark.parametrize("slots", [{"slots": 4}, {"slots": 2, "max_slots": 12}], ids=str)
async def test_idle_rows_leave_kept_prompts_and_one_that_is_being_read_as_they_are(engine_of, prompts, slots):
    beginning = np.arange(1, 31)
    asked = [np.concatenate([beginning[: 10 + 3 * number], own[:20]]) for number, own in enumerate(prompts(7))]
    found, reused = {}, 0
    for kind in (CapturingDecoder, Decoder):
        engine = await engine_of(min_shared_tokens=4, decoder=kind, **slots)
        answers = await asyncio.gather(
            *(
                outputs_of(engine, prompt, seed=number % 7, max_tokens=3 + number % 11, logprobs=2, ignore_eos=True)
                for number, prompt in enumerate(asked * 3)
            )
        )
        found[kind] = [[(output.token_id, output.logprob, output.top) for output in outputs] for outputs in answers]
        reused = sum(outputs[-1].usage.cached_tokens for outputs in answers)
        assert reused > 3 * 7 * 10
    assert found[CapturingDecoder] == found[Decoder]


def test_the_buffers_of_a_step_stay_where_they_are(session, context_length):
    decoder = CapturingDecoder(session, SlotCache(layout(session, context_length), HostMemory()))
    lengths = np.array([1, 1], np.int32)
    places = []
    for token in (5, 6):
        decoder.decode(np.array([token, token]), lengths)
        step = decoder._decode_bindings[2]
        places.append([value.data_ptr() for value in (*step.inputs.values(), *step.outputs.values())])
    assert places[0] == places[1]


def test_each_number_of_rows_is_a_graph_of_its_own_until_the_memory_moves(session, context_length):
    decoder = CapturingDecoder(session, SlotCache(replace(layout(session, context_length), max_slots=8), HostMemory()))
    for rows in (1, 2, 4, 4, 2, 1):
        decoder.decode(np.zeros(rows, np.int64), np.ones(rows, np.int32))
    assert len(decoder._graph_ids) == len(set(decoder._graph_ids)) == 3
    decoder.cache.memory.available = lambda: 0
    with pytest.raises(NotEnoughMemory):
        decoder.grow(8)
    assert len(decoder._graph_ids) == len(decoder._decode_bindings) == 3  # they are as good as before
    del decoder.cache.memory.available
    decoder.grow(8)
    assert decoder._graph_ids == []
    assert decoder.padded_batch_size(5) == 8


class Watched(CaptureLock):
    """Writes down how it was entered."""

    def __init__(self):
        super().__init__()
        self.entered: list[str] = []

    def read(self):
        self.entered.append("read")
        return super().read()

    def write(self):
        self.entered.append("write")
        return super().write()


def test_a_step_holds_the_write_lock_until_its_graph_is_captured(session, context_length, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CAPTURE_LOCK", watched := Watched())
    decoder = CapturingDecoder(session, SlotCache(replace(layout(session, context_length), max_slots=8), HostMemory()))

    def decode(rows):
        decoder.decode(np.zeros(rows, np.int64), np.ones(rows, np.int32))
        return watched.entered.pop()

    decoder.prefill(0, np.array([1, 2]), 0)
    assert len(list(decoder.forward([np.array([1, 2, 3, 4])], 2))) == 2
    assert watched.entered == ["read"] * 3
    assert [decode(rows) for rows in (1, 2, 1, 2)] == ["write", "write", "read", "read"]
    decoder.grow(8)
    assert [decode(rows) for rows in (2, 2)] == ["write", "read"]


def test_a_failed_capture_is_retried_under_the_write_lock(session, context_length, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CAPTURE_LOCK", watched := Watched())
    decoder = CapturingDecoder(session, SlotCache(layout(session, context_length), HostMemory()))
    with pytest.raises(RuntimeError, match="does not match"):
        decoder.decode(np.zeros(2, np.int64), np.ones(3, np.int32))
    decoder.decode(np.zeros(2, np.int64), np.ones(2, np.int32))
    assert watched.entered == ["write", "write"]


def layout(session, context_length):
    return layout_of(session, slots=4, max_slots=4, capacity=context_length)
