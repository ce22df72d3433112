"""The decoder for CUDA graphs, on the CPU: padded batch sizes, idle rows, bindings and the capture lock."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from server.errors import NotEnoughMemory
from server.generation import cuda_graphs
from server.generation.cache import SlotCache
from server.generation.cuda_graphs import CapturingDecoder
from server.generation.decoder import Decoder
from server.generation.device_memory import HostMemory
from server.generation.open import make_layout
from server.runtime.capture_lock import CaptureLock
from tests.continuations import greedy_of
from tests.server.generation.engines import GREEDY, outputs_of, tokens_of


class BatchSizeRecorder(CapturingDecoder):
    """Records the batch sizes."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batch_sizes: list[int] = []

    def decode(self, token_ids, lengths):
        self.batch_sizes.append(len(token_ids))
        return super().decode(token_ids, lengths)


async def test_padded_batches_give_the_same_tokens(engine_of, prompts, reference):
    decoders = []

    def make(*arguments):
        decoders.append(BatchSizeRecorder(*arguments))
        return decoders[0]

    engine, asked = await engine_of(slots=6, decoder=make), prompts(24)
    found = await asyncio.gather(*(tokens_of(engine, prompt, max_tokens=9, **GREEDY) for prompt in asked))
    assert found == [greedy_of(reference, prompt, 9) for prompt in asked]
    assert sorted(decoders[0].batch_sizes[:4]) == [1, 2, 4, 6]  # warm-up
    assert {4, 6} <= set(decoders[0].batch_sizes[4:]) <= {1, 2, 4, 6}


@pytest.mark.parametrize("slots", [{"slots": 4}, {"slots": 2, "max_slots": 12}], ids=str)
async def test_idle_rows_change_neither_cached_prompts_nor_one_in_prefill(engine_of, prompts, slots):
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


def test_the_buffers_of_a_step_keep_their_addresses(session, context_length):
    decoder = CapturingDecoder(session, SlotCache(layout(session, context_length), HostMemory()))
    lengths = np.array([1, 1], np.int32)
    addresses = []
    for token in (5, 6):
        decoder.decode(np.array([token, token]), lengths)
        step = decoder._decode_bindings[2]
        arrays = (step.input_ids, step.position_ids, step.lengths, step.total_length, step.selected, *step.outputs)
        addresses.append([array.ctypes.data for array in arrays])
    assert addresses[0] == addresses[1]


def test_each_batch_size_has_its_own_graph_until_the_memory_moves(session, context_length):
    decoder = CapturingDecoder(session, SlotCache(replace(layout(session, context_length), max_slots=8), HostMemory()))
    for rows in (1, 2, 4, 4, 2, 1):
        decoder.decode(np.zeros(rows, np.int64), np.ones(rows, np.int32))
    assert len(decoder._graph_ids) == len(set(decoder._graph_ids)) == 3
    decoder.cache.memory.available = lambda: 0
    with pytest.raises(NotEnoughMemory):
        decoder.grow(8)
    assert len(decoder._graph_ids) == len(decoder._decode_bindings) == 3  # they are still valid
    del decoder.cache.memory.available
    decoder.grow(8)
    assert decoder._graph_ids == []
    assert decoder.padded_batch_size(5) == 8


class RecordingLock(CaptureLock):
    """Records how it was acquired."""

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
    monkeypatch.setattr(cuda_graphs, "CAPTURE_LOCK", lock := RecordingLock())
    decoder = CapturingDecoder(session, SlotCache(replace(layout(session, context_length), max_slots=8), HostMemory()))

    def decode(rows):
        decoder.decode(np.zeros(rows, np.int64), np.ones(rows, np.int32))
        return lock.entered.pop()

    decoder.prefill(0, np.array([1, 2]), 0)
    assert len(list(decoder.forward([np.array([1, 2, 3, 4])], 2))) == 2
    assert lock.entered == ["read"] * 3
    assert [decode(rows) for rows in (1, 2, 1, 2)] == ["write", "write", "read", "read"]
    decoder.grow(8)
    assert [decode(rows) for rows in (2, 2)] == ["write", "read"]


def test_a_failed_capture_is_retried_under_the_write_lock(session, context_length, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "CAPTURE_LOCK", lock := RecordingLock())
    decoder = CapturingDecoder(session, SlotCache(layout(session, context_length), HostMemory()))
    with pytest.raises(ValueError, match="broadcast"):
        decoder.decode(np.zeros(2, np.int64), np.ones(3, np.int32))
    decoder.decode(np.zeros(2, np.int64), np.ones(2, np.int32))
    assert lock.entered == ["write", "write"]


def layout(session, context_length):
    return make_layout(session, slots=4, max_slots=4, capacity=context_length)
