"""Streams text while tokens are generated: applies stop strings, and puts the new tokens of a text into deltas."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from server.generation.request import Sampling, TokenOutput
from server.observability.observer import Usage
from server.text.detokenizer import Detokenizer, StopStrings


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of a token, and the most likely tokens with theirs."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(kw_only=True)
class TextDelta:
    """The part of a continuation that is new since the previous delta.

    `text` can end before the text of `token_ids`, because characters are never split, and text that may be the start
    of a stop string is held back. Only the last delta has a `finish_reason`, the seed and the usage.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one for each of `token_ids` if requested
    finish_reason: str = ""  # stop, length, cancelled
    stop_reason: str = ""  # the stop string or the token of `stop_token_ids` that ended it
    seed: int | None = None
    usage: Usage | None = None


class DeltaBuilder:
    """Adds the token outputs of one prompt to a delta of text, until the delta is taken."""

    def __init__(self, detokenizer: Detokenizer, stops: StopStrings, sampling: Sampling) -> None:
        self._detokenizer, self._stops, self._sampling = detokenizer, stops, sampling
        self._delta = TextDelta()

    def add(self, output: TokenOutput) -> TextDelta:
        """Add a token; return the delta so far. The last one has a `finish_reason`, which a stop string can cause."""
        delta, token = self._delta, output.token_id
        delta.text += self._text(output)
        if token is not None:
            delta.token_ids.append(token)
            if self._sampling.logprobs:
                delta.logprobs.append(TokenLogprobs(output.logprob, output.top))
        if matched := self._stops.matched:
            delta.finish_reason, delta.stop_reason = "stop", matched
        elif output.finish_reason:
            delta.finish_reason, delta.stop_reason = output.finish_reason, output.stop_reason
        if delta.finish_reason:
            delta.seed, delta.usage = output.seed, output.usage
        return delta

    @property
    def has_tokens(self) -> bool:
        return bool(self._delta.token_ids)

    def take(self) -> TextDelta:
        """The delta since the last call."""
        delta, self._delta = self._delta, TextDelta()
        return delta

    def _text(self, output: TokenOutput) -> str:
        hidden = output.finish_reason == "stop" and not (output.stop_reason and self._stops.include)
        text = "" if hidden or output.token_id is None else self._detokenizer.push(output.token_id)
        if output.finish_reason:
            text += self._detokenizer.flush()
        early = output.usage.completion_tokens <= self._sampling.min_tokens
        text = self._stops.skip(text) if early else self._stops.push(text)
        return text + self._stops.flush() if output.finish_reason else text


class TextStream:
    """The deltas of several continuations. All tokens that wait for a slow reader are in the next delta."""

    def __init__(self, builders: Sequence[DeltaBuilder], *, interval: int = 1) -> None:
        """The first delta of a continuation is due with its first token, others with `interval` tokens or the end."""
        self._builders, self._interval = builders, interval
        self._wanted = [1] * len(builders)  # tokens with which the next delta of each continuation is due
        self._due: dict[int, None] = {}  # numbers of prompts, in the order in which their deltas became due
        self._arrived = asyncio.Event()
        self._error: Exception | None = None

    def push(self, number: int, output: TokenOutput | Exception) -> bool:
        """Add an output of a continuation; see `OutputCallback`. True if a stop string has ended the continuation."""
        if isinstance(output, Exception):
            self._fail(output)
            return False
        try:
            delta = self._builders[number].add(output)
        except Exception as error:  # raised in the reader, not in the engine
            self._fail(error)
            return False
        if delta.finish_reason or len(delta.token_ids) >= self._wanted[number]:
            self._due[number] = None
            self._arrived.set()
        return delta.finish_reason == "stop"

    async def read(self) -> AsyncGenerator[tuple[int, TextDelta], None]:
        """Deltas with the number of their prompt, until all continuations have ended, or one has failed."""
        running = len(self._builders)
        while running:
            await self._arrived.wait()
            self._arrived.clear()
            for number in list(self._due):
                del self._due[number]
                self._wanted[number] = self._interval
                delta = self._builders[number].take()
                yield number, delta
                running -= bool(delta.finish_reason)
            if self._error is not None:
                raise self._error

    def _fail(self, error: Exception) -> None:
        """Raise the first error in the reader, after the tokens that are there."""
        self._error = self._error or error
        self._due |= {number: None for number, builder in enumerate(self._builders) if builder.has_tokens}
        self._arrived.set()
