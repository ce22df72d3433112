"""Continue a text, piece by piece, until a stop string, a stop token or a limit; and the tensor door of GPT."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from server.admission import Call
from server.arrays import Array
from server.generation.engine import Engine, Steps
from server.generation.engines import Engines
from server.generation.graph import Ids
from server.generation.request import Sampling, Step, Usage
from server.generation.text import Detokenizer, StopStrings
from server.tasks.raw import check_size, read_ids, read_lengths
from server.tasks.text import TextEncoder


@dataclass(frozen=True)
class TokenLogprobs:
    """Of one token: its log-probability, and the likeliest tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is new of a continuation.

    `text` may lag behind `token_ids`: characters are never cut, and what may be the beginning of a stop string is held
    back. The last piece, and no other, has a `finish_reason`, the seed and the usage.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # one for each of `token_ids`, if asked for
    finish_reason: str = ""  # stop, length, cancelled
    stop_reason: str = ""  # the stop string or the token of `stop_token_ids` that ended it
    seed: int | None = None
    usage: Usage | None = None


Prompt = str | Sequence[int]
Pieces = AsyncGenerator[Piece, None]


class Generate:
    """Text in, text out, over an engine that knows only tokens."""

    def __init__(self, engine: Engine | Engines, encoder: TextEncoder, prepare: Executor) -> None:
        self._engine, self._encoder, self._prepare = engine, encoder, prepare

    @asynccontextmanager
    async def streams(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        call: Call,
        field: str = "prompts",
    ) -> AsyncIterator[list[Pieces]]:
        """The continuations of all prompts, or of none, in pieces as they come. Leaving ends those that are not done.

        Raises what `Engine.admit` raises, before anything is read. `field` is what the caller knows the prompts as.
        """
        with self._engine.under_way.one():
            with self._engine.room(len(prompts), field=field):
                encode = partial(self._prompt_ids, prompts, field)
                prompt_ids = await asyncio.get_running_loop().run_in_executor(self._prepare, encode)
                writers = [_Writer(self._encoder.piece_by_piece(), stop, include_stop) for _ in prompts]
            with self._engine.admit(prompt_ids, sampling, call, field=field) as steps:  # nobody came in between
                yield [_pieces(its, writer, sampling) for its, writer in zip(steps.values(), writers, strict=True)]

    def _prompt_ids(self, prompts: Sequence[Prompt], field: str) -> dict[str, Ids]:
        """Off the event loop: each prompt by the name that errors tell."""
        names = [f"{field}[{number}]" for number in range(len(prompts))]
        return {
            name: self._encoder.encode_one(prompt, field=name).input_ids
            if isinstance(prompt, str)
            else np.array(prompt, np.int64)
            for name, prompt in zip(names, prompts, strict=True)
        }


async def _pieces(steps: Steps, writer: "_Writer", sampling: Sampling) -> Pieces:
    async with aclosing(steps):
        async for step in steps:
            piece = writer.write(step)
            yield piece if sampling.logprobs else replace(piece, logprobs=[])
            if piece.finish_reason:
                return


class _Writer:
    """Steps of one request into pieces of text."""

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str], include_stop: bool) -> None:
        self._detokenizer, self._include_stop = detokenizer, include_stop
        self._stops = StopStrings(stop, include=include_stop)
        self._tokens = 0
        self._first: Step | None = None
        self._first_at = 0.0

    def write(self, step: Step) -> Piece:
        if self._first is None:
            self._first, self._first_at = step, time.monotonic()
        ids = [] if step.token_id is None else [step.token_id]
        self._tokens += len(ids)
        text = self._text(ids, step)
        piece = Piece(text=text, token_ids=ids, logprobs=[TokenLogprobs(step.logprob, step.top) for _ in ids])
        if self._stops.matched:
            return self._stopped(piece, self._first)
        if not step.finish_reason:
            return piece
        return replace(
            piece, finish_reason=step.finish_reason, stop_reason=step.stop_reason, seed=step.seed, usage=step.usage
        )

    def _stopped(self, piece: Piece, first: Step) -> Piece:
        """The last piece, where a stop string ends it: the engine, which knows no text, has not ended."""
        assert first.usage is not None, "the first step has the usage; this is a bug"
        seconds = first.usage.inference_seconds + time.monotonic() - self._first_at
        usage = replace(first.usage, completion_tokens=self._tokens, inference_seconds=seconds)
        return replace(piece, finish_reason="stop", stop_reason=self._stops.matched, seed=first.seed, usage=usage)

    def _text(self, ids: Sequence[int], step: Step) -> str:
        hidden = step.finish_reason == "stop" and not (step.stop_reason and self._include_stop)
        text = "" if hidden else "".join(map(self._detokenizer.push, ids))
        if step.finish_reason:
            text += self._detokenizer.flush()
        text = self._stops.push(text)
        return text + self._stops.flush() if step.finish_reason else text


class RawGpt:
    """`input_ids` (n, t), optional `attention_mask` alike, both INT64 → `logits` (n, t, v) FP32, zeros at padding."""

    def __init__(self, engine: Engine | Engines) -> None:
        self._engine = engine

    async def __call__(self, inputs: Mapping[str, Array], *, call: Call) -> dict[str, Array]:
        vocabulary = self._engine.vocabulary
        ids = read_ids(inputs, max_length=self._engine.context)
        check_size(ids, vocabulary)
        lengths = read_lengths(ids, inputs, vocabulary=vocabulary)
        with self._engine.under_way.one():
            return {"logits": await self._engine.logits(ids, lengths, call)}
