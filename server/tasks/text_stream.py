"""Streams text while tokens are generated: applies stop strings, and merges deltas that the client has not read yet."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from server.generation.request import Sampling, TokenOutput
from server.observability.observer import Usage
from server.text.detokenizer import Detokenizer, StopStrings


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token, and the most likely tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """The part of a continuation that is new since the previous delta.

    `text` can end before the text of `token_ids`, because characters are never split, and text that may be the start
    of a stop string is held back. Only the last delta has a `finish_reason`, the seed and the usage.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]  # one for each of `token_ids` if requested
    finish_reason: str = ""  # stop, length, cancelled
    stop_reason: str = ""  # the stop string or the token of `stop_token_ids` that ended it
    seed: int | None = None
    usage: Usage | None = None


class DeltaBuilder:
    """Turns the token outputs of one prompt into deltas of text."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, sampling: Sampling) -> None:
        self._detokenizer, self._stops, self._sampling = detokenizer, stops, sampling

    def build(self, output: TokenOutput) -> TextDelta:
        """The delta of one token. The last one has a `finish_reason`, which may be due to a stop string."""
        ids = [] if output.token_id is None else [output.token_id]
        delta = TextDelta(
            text=self._text(ids, output),
            token_ids=ids,
            logprobs=[TokenLogprobs(output.logprob, output.top) for _ in ids] if self._sampling.logprobs else [],
        )
        matched = self._stops.matched
        reason, stop_reason = ("stop", matched) if matched else (output.finish_reason, output.stop_reason)
        if not reason:
            return delta
        return replace(delta, finish_reason=reason, stop_reason=stop_reason, seed=output.seed, usage=output.usage)

    def _text(self, ids: Sequence[int], output: TokenOutput) -> str:
        hidden = output.finish_reason == "stop" and not (output.stop_reason and self._stops.include)
        text = "" if hidden else "".join(map(self._detokenizer.push, ids))
        if output.finish_reason:
            text += self._detokenizer.flush()
        early = output.usage.completion_tokens <= self._sampling.min_tokens
        text = self._stops.skip(text) if early else self._stops.push(text)
        return text + self._stops.flush() if output.finish_reason else text


class TextStream:
    """The deltas of several continuations. Deltas that wait for a slow reader are merged into one for each."""

    def __init__(self, builders: Sequence[DeltaBuilder]) -> None:
        self._builders = builders
        self._new: dict[int, list[TextDelta]] = {}  # by number of the prompt
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def push(self, number: int, output: TokenOutput | Exception) -> bool:
        """Add an output of a continuation; see `OutputCallback`. True if a stop string has ended the continuation."""
        self._arrived.set()
        if isinstance(output, Exception):
            self._error = self._error or output  # raised in the reader
            return False
        try:
            delta = self._builders[number].build(output)
        except Exception as error:  # raised in the reader, not in the engine
            self._error = error
            return False
        self._new.setdefault(number, []).append(delta)
        return delta.finish_reason == "stop"

    async def read(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """Deltas with the number of their prompt, until all continuations have ended, or one has failed."""
        running = len(self._builders)
        while running:
            await self._arrived.wait()
            self._arrived.clear()
            new, self._new = self._new, {}
            for number, deltas in new.items():
                yield number, merged(deltas)
                running -= bool(deltas[-1].finish_reason)
            if self._error is not None:
                raise self._error


def merged(deltas: Sequence[TextDelta]) -> TextDelta:
    """Consecutive deltas as one."""
    if len(deltas) == 1:
        return deltas[0]
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=[token for delta in deltas for token in delta.token_ids],
        logprobs=[token for delta in deltas for token in delta.logprobs],
    )
