"""Deltas of text: which tokens are in them and when they are due, without an engine."""

import asyncio

import pytest
from tokenizers import Tokenizer, decoders, models

from server.generation.request import Sampling, TokenOutput
from server.observability.observer import Usage
from server.tasks.text_stream import DeltaBuilder, TextStream
from server.text.detokenizer import Detokenizer, StopStrings

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SEED = 3


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer with one token for each letter."""
    letters = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate(LETTERS)}, unk_token="a"))
    letters.decoder = decoders.Fuse()
    return letters


@pytest.fixture
def stream_of(tokenizer):
    """Makes streams of several continuations."""

    def make(prompts=1, *, interval=4, stop=(), **sampling):
        builders = [
            DeltaBuilder(Detokenizer(tokenizer), StopStrings(stop, include=False), Sampling(**sampling))
            for _ in range(prompts)
        ]
        return TextStream(builders, interval=interval)

    return make


def output(number, **last):
    """The output for the letter of this number."""
    usage = Usage(
        prompt_tokens=1, completion_tokens=number + 1, cached_tokens=0, queue_seconds=0.0, inference_seconds=1.0
    )
    return TokenOutput(token_id=number, logprob=-float(number), top=((number, -1.0),), seed=SEED, usage=usage, **last)


class Reader:
    """Reads a stream; what has arrived so far is in `deltas`, as numbers of prompts and texts."""

    def __init__(self, stream):
        self.deltas, self.whole = [], []
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream):
        async for number, delta in stream.read():
            self.whole.append(delta)
            self.deltas.append((number, delta.text))

    async def after(self, pushed):
        """What has arrived in all, when the reader has taken all that is due."""
        for _ in range(5):
            await asyncio.sleep(0)
        return self.deltas


async def test_the_first_token_is_due_at_once_later_ones_with_the_interval_and_the_last_ones_with_the_end(stream_of):
    stream = stream_of(max_tokens=11, logprobs=1)
    reader = Reader(stream)
    arrived = [len(await reader.after(stream.push(0, output(number)))) for number in range(10)]
    assert arrived == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    stream.push(0, output(10, finish_reason="length"))
    await reader.task
    assert reader.deltas == [(0, "a"), (0, "bcde"), (0, "fghi"), (0, "jk")]
    assert [delta.token_ids for delta in reader.whole] == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [[token.logprob for token in delta.logprobs] for delta in reader.whole][-1] == [-9.0, -10.0]
    assert [(delta.finish_reason, delta.seed, delta.usage is None) for delta in reader.whole] == [
        *[("", None, True)] * 3,
        ("length", SEED, False),
    ]


async def test_an_interval_of_one_gives_a_delta_for_each_token(stream_of):
    stream = stream_of(interval=1)
    reader = Reader(stream)
    assert [len(await reader.after(stream.push(0, output(number)))) for number in range(4)] == [1, 2, 3, 4]
    reader.task.cancel()


async def test_tokens_that_wait_for_their_reader_are_in_one_delta(stream_of):
    stream = stream_of(interval=2)
    for number in range(9):
        stream.push(0, output(number))
    reader = Reader(stream)
    assert await reader.after(None) == [(0, "abcdefghi")]
    assert await reader.after(stream.push(0, output(9))) == [(0, "abcdefghi")]
    assert await reader.after(stream.push(0, output(10))) == [(0, "abcdefghi"), (0, "jk")]
    reader.task.cancel()


async def test_a_stop_string_ends_the_text_although_no_delta_was_due(stream_of):
    stream = stream_of(stop=["cd"], max_tokens=20)
    reader = Reader(stream)
    assert [stream.push(0, output(number)) for number in range(4)] == [False, False, False, True]
    await reader.task
    assert "".join(text for _, text in reader.deltas) == "ab"
    assert (reader.whole[-1].finish_reason, reader.whole[-1].stop_reason) == ("stop", "cd")
    assert reader.whole[-1].usage.completion_tokens == 4


async def test_the_deltas_of_several_prompts_are_due_independently(stream_of):
    stream = stream_of(2)
    reader = Reader(stream)
    stream.push(0, output(0))
    await reader.after(stream.push(1, output(5)))
    for number in range(1, 4):
        stream.push(0, output(number))
    await reader.after(stream.push(1, output(6)))
    assert reader.deltas == [(0, "a"), (1, "f")]
    assert await reader.after(stream.push(0, output(4))) == [(0, "a"), (1, "f"), (0, "bcde")]
    stream.push(1, output(7, finish_reason="length"))
    stream.push(0, output(5, finish_reason="length"))
    await reader.task
    assert reader.deltas[3:] == [(1, "gh"), (0, "f")]


async def test_an_error_is_raised_after_the_tokens_that_are_there(stream_of):
    stream = stream_of()
    reader = Reader(stream)
    for number in range(3):
        await reader.after(stream.push(0, output(number)))
    stream.push(0, ValueError("broken"))
    with pytest.raises(ValueError, match="broken"):
        await reader.task
    assert reader.deltas == [(0, "a"), (0, "bc")]


async def test_a_cancellation_without_a_token_ends_the_text(stream_of):
    stream = stream_of()
    reader = Reader(stream)
    for number in range(3):
        await reader.after(stream.push(0, output(number)))
    usage = output(2).usage
    stream.push(0, TokenOutput(token_id=None, finish_reason="cancelled", seed=SEED, usage=usage))
    await reader.task
    assert reader.deltas == [(0, "a"), (0, "bc")]
    assert (reader.whole[-1].token_ids, reader.whole[-1].finish_reason) == ([1, 2], "cancelled")
