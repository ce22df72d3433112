"""The texts of requests → tokens, in threads: a slice at a time, so that others have their turn in between, and who is
gone is not read to the end."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

from server.admission import Gate, Limits
from server.errors import InvalidRequest
from server.tasks.text import TextEncoder, Tokens, check_pairs

SLICE_CHARACTERS = 1 << 18  # a fifth of a second and 40 MB, where each is a token
MAX_COUNTED_CHARACTERS = 1 << 22  # of one request to count tokens: a few books
Read = TypeVar("Read")


class TextReader:
    """Reads texts for one model."""

    def __init__(self, encoder: TextEncoder, prepare: Executor) -> None:
        self._encoder, self._prepare = encoder, prepare

    async def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] = (),
        *,
        truncate: bool,
        field: str,
        pair_field: str = "text_pairs",
    ) -> list[Tokens]:
        """As `TextEncoder.encode`; nothing is read any more behind a text that is refused."""
        check_pairs(texts, pairs, pair_field)

        def encode(part: slice) -> list[Tokens]:
            named = {"first": part.start, "field": field, "pair_field": pair_field}
            return self._encoder.encode(texts[part], pairs[part], truncate=truncate, **named)

        most = self._encoder.most_characters
        return await _in_slices(self._prepare, encode, [min(length, most) for length in _characters(texts, pairs)])


class TokenCounter:
    """Counts the tokens of texts for one model."""

    def __init__(self, encoder: TextEncoder, prepare: Executor, *, name: str, most: int) -> None:
        """`most`: how many texts may wait to be counted, over all callers."""
        self.max_tokens = encoder.max_length
        self._encoder, self._prepare = encoder, prepare
        self._gate = Gate(f"texts to count for {name}", Limits(requests=most, tokens=MAX_COUNTED_CHARACTERS))

    async def __call__(self, texts: Sequence[str], pairs: Sequence[str], *, field: str, pair_field: str) -> list[int]:
        """Of each text, or pair. InvalidRequest if they are too many or too long together, Overloaded if many wait."""
        characters = sum(_characters(texts, pairs))
        if characters > MAX_COUNTED_CHARACTERS:
            raise InvalidRequest(field, f"{characters} characters together", f"at most {MAX_COUNTED_CHARACTERS}")
        check_pairs(texts, pairs, pair_field)

        def count(part: slice) -> list[int]:
            named = {"first": part.start, "field": field, "pair_field": pair_field}
            return self._encoder.count(texts[part], pairs[part], **named)

        self._gate.enter(requests=len(texts), tokens=0, field=field)
        try:
            return await _in_slices(self._prepare, count, _characters(texts, pairs))
        finally:
            self._gate.leave(requests=len(texts), tokens=0)


def _characters(texts: Sequence[str], pairs: Sequence[str]) -> list[int]:
    return [len(text) + len(pair) for text, pair in zip(texts, pairs or [""] * len(texts), strict=False)]


async def _in_slices(pool: Executor, read: Callable[[slice], list[Read]], characters: Sequence[int]) -> list[Read]:
    found: list[Read] = []
    for part in _slices(characters):
        found += await asyncio.get_running_loop().run_in_executor(pool, partial(read, part))
    return found


def _slices(characters: Sequence[int]) -> Iterator[slice]:
    """So many inputs at a time that they are not too long together, at least one."""
    begin = total = 0
    for number, length in enumerate(characters):
        if total and total + length > SLICE_CHARACTERS:
            yield slice(begin, number)
            begin, total = number, 0
        total += length
    if characters:
        yield slice(begin, len(characters))
