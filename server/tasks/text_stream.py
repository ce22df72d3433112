"""Tokens into text, piece by piece, as they come: where stop strings end it, and what waits for a slow reader."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from server.generation.request import Sampling, Step
from server.observability.observer import Usage
from server.text.detokenizer import Detokenizer, StopStrings


@dataclass(frozen=True)
class TokenLogprobs:
    """Of one token: its log-probability, and the likeliest tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class TextDelta:
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


class DeltaBuilder:
    """The steps of one prompt into pieces of text."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, sampling: Sampling) -> None:
        self._detokenizer, self._stops, self._sampling = detokenizer, stops, sampling

    def write(self, step: Step) -> TextDelta:
        """What is new with this step. It is the last piece if it has a `finish_reason`, whatever the step says."""
        ids = [] if step.token_id is None else [step.token_id]
        piece = TextDelta(
            text=self._text(ids, step),
            token_ids=ids,
            logprobs=[TokenLogprobs(step.logprob, step.top) for _ in ids] if self._sampling.logprobs else [],
        )
        matched = self._stops.matched
        reason, stop_reason = ("stop", matched) if matched else (step.finish_reason, step.stop_reason)
        if not reason:
            return piece
        return replace(piece, finish_reason=reason, stop_reason=stop_reason, seed=step.seed, usage=step.usage)

    def _text(self, ids: Sequence[int], step: Step) -> str:
        hidden = step.finish_reason == "stop" and not (step.stop_reason and self._stops.include)
        text = "" if hidden else "".join(map(self._detokenizer.push, ids))
        if step.finish_reason:
            text += self._detokenizer.flush()
        early = step.usage.completion_tokens <= self._sampling.min_tokens
        text = self._stops.skip(text) if early else self._stops.push(text)
        return text + self._stops.flush() if step.finish_reason else text


class TextStream:
    """What is new of several continuations, until it is read: a slow reader gets of each what waits as one piece."""

    def __init__(self, writers: Sequence[DeltaBuilder]) -> None:
        self._writers = writers
        self._new: dict[int, list[TextDelta]] = {}  # by number of the prompt
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def take(self, number: int, step: Step | Exception) -> bool:
        """A step of one of them has come. True if a stop string has ended it, so that it wants no more."""
        self._arrived.set()
        try:
            if isinstance(step, Exception):
                raise step
            piece = self._writers[number].write(step)
        except Exception as error:  # the reader's to see, not the engine's
            self._error = error
            return False
        self._new.setdefault(number, []).append(piece)
        return piece.finish_reason == "stop"

    async def read(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """What is new, with the number of its prompt, until all have ended. The first error ends all of them."""
        running = len(self._writers)
        while running:
            await self._arrived.wait()
            self._arrived.clear()
            new, self._new = self._new, {}
            for number, pieces in new.items():
                yield number, joined(pieces)
                running -= bool(pieces[-1].finish_reason)
            if self._error is not None:
                raise self._error


def joined(pieces: Sequence[TextDelta]) -> TextDelta:
    """Pieces that follow each other as one."""
    return replace(
        pieces[-1],
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        logprobs=[token for piece in pieces for token in piece.logprobs],
    )
