"""The slots of the cache: prefill in chunks, decoding of several slots, copies, and growth."""

import numpy as np
import pytest

from server.errors import BadArtifact, NotEnoughMemory
from server.generation.cache import RUNTIME_SHARE, SlotCache
from server.generation.decoder import Decoder
from server.generation.device_memory import HostMemory
from server.generation.golden_check import check_decoding, replay
from server.generation.open import make_layout


@pytest.fixture
def decoder(session, context_length):
    layout = make_layout(session, slots=4, max_slots=16, capacity=context_length)
    return Decoder(session, SlotCache(layout, HostMemory()))


@pytest.mark.parametrize("chunks", [[20], [8, 8, 4], [3, 17], [1, 2, 17], [18, 2]], ids=str)
def test_prefill_in_chunks_gives_the_logits_of_prefill_at_once(decoder, chunks):
    ids, start = np.arange(1, 21), 0
    for length in chunks:
        scores = decoder.prefill(2, ids[start : start + length], start)
        start += length
    expected = after(decoder, ids)
    assert np.abs(scores.logits([0])[0] - expected).max() < 1e-5
    assert scores.logsumexp[0] == pytest.approx(np.log(np.exp(expected).sum()), abs=1e-5)
    assert scores.top_ids[0].tolist() == np.argsort(-expected, kind="stable")[: decoder.graph_top_k].tolist()


def test_sequences_of_different_lengths_decode_together(decoder, prompts):
    texts = prompts(4)
    for slot, text in enumerate(texts):
        if len(text) > 1:
            decoder.prefill(slot, text[:-1], 0)
    lengths = np.array([len(text) for text in texts], np.int32)
    scores = decoder.decode(np.array([text[-1] for text in texts]), lengths)
    for row, text in zip(scores.logits(range(4)), texts, strict=True):
        assert np.abs(row - after(decoder, text)).max() < 1e-5


def test_a_copied_slot_decodes_like_the_original(decoder):
    ids = np.arange(1, 12)
    decoder.prefill(3, ids[:-1], 0)
    decoder.prefill(0, np.arange(20, 50), 0)  # older contents of slot 0
    decoder.cache.copy(source=3, target=0, tokens=10)
    scores = decoder.decode(ids[-1:], np.array([11], np.int32))
    assert np.abs(scores.logits([0])[0] - after(decoder, ids)).max() < 1e-5


def test_the_size_of_a_slot_is_that_of_its_keys_and_values(decoder, context_length):
    layout = decoder.cache.layout
    assert layout.bytes(1) == 2 * layout.layers * layout.heads * context_length * layout.head_width * 4


def test_an_empty_batch_fails_before_it_reaches_the_runtime(decoder):
    with pytest.raises(AssertionError, match="bug"):
        decoder.decode(np.zeros(0, np.int64), np.zeros(0, np.int32))


def test_decoding_gives_the_golden_logits(session, artifact):
    found, expected = replay(session, artifact.golden())
    assert len(found) >= 3
    assert np.abs(found - expected).max() / expected.std() < 1e-4
    assert check_decoding(session, artifact) < 1e-4


def test_decoding_out_of_tolerance_is_refused(session, artifact, monkeypatch):
    monkeypatch.setattr(Decoder, "decode", lambda self, ids, lengths: decode(self, ids[::-1].copy(), lengths))
    with pytest.raises(BadArtifact, match="decoding step by step is off"):
        check_decoding(session, artifact)


decode = Decoder.decode


def test_growing_keeps_the_contents_of_slots(decoder):
    ids = np.arange(1, 12)
    decoder.prefill(3, ids[:-1], 0)
    decoder.grow(12)
    decoder.prefill(11, ids[:-1], 0)
    lengths = np.ones(12, np.int32)
    lengths[[3, 11]] = 11
    token_ids = np.zeros(12, np.int64)
    token_ids[[3, 11]] = ids[-1]
    found = decoder.decode(token_ids, lengths).logits([3, 11])
    assert np.abs(found - after(decoder, ids)).max() < 1e-5


def test_the_error_for_a_cache_that_does_not_fit_says_how_many_slots_would_fit(session, context_length):
    layout = make_layout(session, slots=8, max_slots=16, capacity=context_length)
    with pytest.raises(NotEnoughMemory, match="found 8 slots of 64 tokens, .* expected at most 5"):
        SlotCache(layout, LimitedMemory(int(5.9 * layout.bytes(1))))


def test_a_cache_that_cannot_grow_keeps_its_slots_and_their_contents(session, context_length):
    layout = make_layout(session, slots=4, max_slots=16, capacity=context_length)
    decoder = Decoder(session, SlotCache(layout, LimitedMemory(6 * layout.bytes(1))))
    with pytest.raises(NotEnoughMemory, match="found 16 slots"):
        decoder.grow(16)
    assert decoder.cache.slots == 4
    ids = np.arange(1, 12)
    decoder.prefill(3, ids[:-1], 0)
    found = decoder.prefill(3, ids[-1:], 10).logits([0])[0]
    assert np.abs(found - after(decoder, ids)).max() < 1e-5


def after(decoder, ids):
    """The logits (vocabulary,) after a whole text, computed without the cache."""
    ((logits,),) = decoder.forward([ids], len(ids))
    return logits[-1]


class LimitedMemory(HostMemory):
    """Has so many usable bytes."""

    def __init__(self, usable: int) -> None:
        super().__init__()
        self._available = int(usable / (1 - RUNTIME_SHARE)) + 1

    def available(self) -> int:
        return self._available
