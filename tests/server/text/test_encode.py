"""Texts are encoded in chunks, so that a request of megabytes neither blocks others nor holds all tokens at once."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from server.artifact import read_artifact
from server.concurrency.offload import MAX_INLINE_ITEMS
from server.errors import InvalidRequest, Overloaded
from server.text.encode import CHUNK_CHARACTERS, AsyncEncoder, TokenCounter
from server.text.tokenizer import TextEncoder

TEXT = "a list " * 2000
MANY = 200  # such texts are more than ten slices


class Notes(ThreadPoolExecutor):
    """One thread, which counts its jobs."""

    def __init__(self):
        super().__init__(1)
        self.jobs = 0

    def submit(self, work, /, *arguments):
        self.jobs += 1
        return super().submit(work, *arguments)


@pytest.fixture
def pool():
    with Notes() as pool:
        yield pool


@pytest.fixture
def encoder(exported):
    return TextEncoder(read_artifact(exported("tiny-bert")))


async def test_short_texts_are_encoded_together_and_long_ones_in_chunks(encoder, pool):
    read = AsyncEncoder(encoder, pool)
    assert len(await read(["a list", "a set"] * 20, truncate=False, field="texts")) == 40
    assert pool.jobs == 1
    tokens = await read([TEXT, "a set", *[TEXT] * MANY], truncate=True, field="texts")
    assert [(len(each), each.truncated) for each in tokens] == [(64, True), (4, False), *[(64, True)] * MANY]
    assert pool.jobs > 1 + (MANY + 1) * len(TEXT) // CHUNK_CHARACTERS


async def test_a_few_short_texts_are_not_worth_a_switch_to_a_thread(encoder, pool):
    assert len(await AsyncEncoder(encoder, pool)(["a list", "a set"], truncate=False, field="texts")) == 2
    assert pool.jobs == 0
    await AsyncEncoder(encoder, pool)([""] * 100, ["a"] * 100, truncate=False, field="texts")
    assert pool.jobs == 1


async def test_pairs_stay_together(encoder, pool):
    texts, pairs = [f"{'a ' * 4000}{number}" for number in range(MANY)], [f"list {n}" for n in range(MANY)]
    tokens = await AsyncEncoder(encoder, pool)(texts, pairs, truncate=True, field="texts")
    expected = encoder.encode(texts[-1:], pairs[-1:], truncate=True)
    assert tokens[-1].input_ids.tolist() == expected[0].input_ids.tolist()
    assert pool.jobs > 2


async def test_no_chunk_is_encoded_behind_a_text_that_is_too_long(encoder, pool):
    with pytest.raises(InvalidRequest, match=r"texts\[1\]: found 4002 tokens"):
        await AsyncEncoder(encoder, pool)(["a", *[TEXT] * MANY], truncate=False, field="texts")
    assert pool.jobs == 1
    last = max(number for number in range(200) if encoder.token(number).isalpha())
    encoder.text.vocabulary, rare = last, encoder.token(last)  # as if the model had no row for it
    with pytest.raises(InvalidRequest, match=rf"texts\[{MANY}\]: found the token '{rare}' \(id {last}\)"):
        await AsyncEncoder(encoder, pool)([*[TEXT] * MANY, rare], truncate=True, field="texts")


async def test_no_chunk_is_encoded_for_a_cancelled_request(encoder, pool):
    reading = asyncio.create_task(AsyncEncoder(encoder, pool)([TEXT] * MANY, truncate=True, field="texts"))
    while not pool.jobs:
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert pool.jobs == 1


async def test_the_number_of_texts_that_wait_to_be_counted_is_limited(encoder, pool):
    count = TokenCounter(encoder, pool, name="bert", max_texts=3)
    first = asyncio.create_task(count(["a", " " * MAX_INLINE_ITEMS + "a list"], [], field="texts", pair_field="pairs"))
    while not pool.jobs:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="the queue of texts to count for bert is full"):
        await count(["a", "b"], [], field="texts", pair_field="pairs")
    assert await first == [3, 4]
    assert await count(["a"] * 3, [], field="texts", pair_field="pairs") == [3, 3, 3]


def test_an_error_names_a_text_without_a_token_by_its_number(encoder, monkeypatch):
    letters = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))  # which is not there
    letters.pre_tokenizer = pre_tokenizers.Whitespace()
    monkeypatch.setattr(encoder, "_tokenizer", letters)
    assert [len(tokens) for tokens in encoder.encode(["a", "a b"])] == [1, 2]
    with pytest.raises(InvalidRequest, match=r"texts\[8\]: found a character that the tokenizer has no token for"):
        encoder.encode(["a", "a b", "c", "d"], first=6)
