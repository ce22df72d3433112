"""Decodes tokens while they are generated, and finds stop strings. Knows nothing of requests or models."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from server.errors import InvalidRequest

CLEANED = {  # in this order
    **{f" {mark}": mark for mark in ".?!,"},
    " ' ": "'",
    **{f" {end}": end for end in ("n't", "'m", "'s", "'ve", "'re")},
}
LONGEST_CLEANED = max(map(len, CLEANED))


class Detokenizer:
    """Decodes one continuation token by token. It never returns part of a character.

    The returned texts together are the text that `tokenizer.decode` returns for all tokens, without special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, *, cleans_up: bool = False) -> None:
        self._tokenizer, self._cleans_up = tokenizer, cleans_up
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._emitted = 0  # characters
        self._raw = ""  # decoded so far and not cleaned up, if `cleans_up`

    def push(self, token_id: int) -> str:
        """Add a token; return the characters that are complete now."""
        self._ids.append(token_id)
        text: str = self._stream.step(self._tokenizer, token_id) or ""
        if self._cleans_up:
            self._raw += text
            text = clean_up(self._raw)[self._emitted : -LONGEST_CLEANED]  # the rest depends on the next token
        self._emitted += len(text)
        return text

    def flush(self) -> str:
        """The remaining text after the last token. An incomplete character becomes U+FFFD, the replacement."""
        whole: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return (clean_up(whole) if self._cleans_up else whole)[self._emitted :]


def clean_up(text: str) -> str:
    """Remove spaces before punctuation as `clean_up_tokenization_spaces` of transformers does."""
    for found, cleaned in CLEANED.items():
        text = text.replace(found, cleaned)
    return text


class StopStrings:
    """Passes text on up to the first stop string, which may be spread over several calls.

    The first stop string is the one that ends first; of several that end at the same character, the longest.

    >>> stops = StopStrings(["</s>"], include=False)
    >>> stops.push("a <"), stops.push("b> c</"), stops.push("s> d"), stops.matched
    ('a ', '<b> c', '', '</s>')
    """

    def __init__(self, stops: Sequence[str], *, include: bool) -> None:
        for index, stop in enumerate(stops):
            if not stop:
                raise InvalidRequest(f"stop[{index}]", "an empty string", "at least one character")
        self._stops = tuple(stops)
        self.include = include
        self._held = ""  # may be the beginning of a stop string
        self.matched = ""

    def push(self, text: str) -> str:
        """Add text; return the part of the text held so far that can be passed on. Nothing after a match."""
        if not self._stops:
            return text
        if self.matched:
            return ""
        before = len(self._held)  # no stop string ends within these characters
        self._held += text
        starts = ((stop, self._held.find(stop, max(0, before - len(stop) + 1))) for stop in self._stops)
        ends = [(at + len(stop), -len(stop), stop) for stop, at in starts if at >= 0]
        if not ends:
            return self._release(len(self._held) - self._partial_match(), keep=True)
        end, _, self.matched = min(ends)
        return self._release(end if self.include else end - len(self.matched), keep=False)

    def skip(self, text: str) -> str:
        """As `push`, for text in which stop strings do not count."""
        self._held += text
        return self._release(len(self._held) - self._partial_match(), keep=True)

    def flush(self) -> str:
        """The text that was held back, after the last `push`."""
        return "" if self.matched else self._release(len(self._held), keep=False)

    def _release(self, count: int, *, keep: bool) -> str:
        text, rest = self._held[:count], self._held[count:]
        self._held = rest if keep else ""
        return text

    def _partial_match(self) -> int:
        """The length of the longest suffix of the held text that is a prefix of a stop string."""
        longest = min(max(map(len, self._stops), default=1) - 1, len(self._held))
        ends = (length for length in range(longest, 0, -1))
        return next((n for n in ends if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
