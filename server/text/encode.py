"""Encodes the texts of requests in threads, in chunks, so that a large request does not block the others."""

from collections.abc import Sequence
from concurrent.futures import Executor

from server.admission.queue import AdmissionQueue, Limits
from server.concurrency.offload import offload_chunked
from server.errors import InvalidRequest
from server.text.tokenizer import EncodedText, TextEncoder, check_pairs

CHUNK_CHARACTERS = 1 << 18  # a fifth of a second and 40 MB if each character is a token
MAX_COUNTED_CHARACTERS = 1 << 22  # of one request to count tokens: the length of a few books


class AsyncEncoder:
    """Encodes texts for one model."""

    def __init__(self, encoder: TextEncoder, threads: Executor) -> None:
        self._encoder, self._threads = encoder, threads

    async def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] = (),
        *,
        prompt_name: str | None = None,
        truncate: bool,
        field: str,
        pair_field: str = "text_pairs",
    ) -> list[EncodedText]:
        """As `TextEncoder.encode`. Chunks after a refused text are not encoded."""
        check_pairs(texts, pairs, pair_field)

        def encode(part: slice) -> list[EncodedText]:
            named = {"first": part.start, "field": field, "pair_field": pair_field}
            return self._encoder.encode(texts[part], pairs[part], prompt_name=prompt_name, truncate=truncate, **named)

        lengths = [min(length, self._encoder.max_characters) for length in _characters(texts, pairs)]
        return await offload_chunked(self._threads, encode, lengths, max_size=CHUNK_CHARACTERS)


class TokenCounter:
    """Counts the tokens of texts for one model."""

    def __init__(self, encoder: TextEncoder, threads: Executor, *, name: str, max_texts: int) -> None:
        """`max_texts` is the number of texts that may wait to be counted, over all callers."""
        self.max_tokens = encoder.max_length
        self._encoder, self._threads = encoder, threads
        self._admission = AdmissionQueue(
            f"texts to count for {name}", Limits(inputs=max_texts, tokens=MAX_COUNTED_CHARACTERS)
        )

    async def __call__(
        self, texts: Sequence[str], pairs: Sequence[str], *, prompt_name: str | None = None, field: str, pair_field: str
    ) -> list[int]:
        """The tokens of each text or pair. InvalidRequest if they are too long, Overloaded if too many wait."""
        characters = sum(_characters(texts, pairs))
        if characters > MAX_COUNTED_CHARACTERS:
            raise InvalidRequest(field, f"{characters} characters together", f"at most {MAX_COUNTED_CHARACTERS}")
        check_pairs(texts, pairs, pair_field)

        def count(part: slice) -> list[int]:
            named = {"first": part.start, "field": field, "pair_field": pair_field}
            return self._encoder.count(texts[part], pairs[part], prompt_name=prompt_name, **named)

        self._admission.acquire(inputs=len(texts), tokens=0, field=field)
        try:
            return await offload_chunked(self._threads, count, _characters(texts, pairs), max_size=CHUNK_CHARACTERS)
        finally:
            self._admission.release(inputs=len(texts), tokens=0)


def _characters(texts: Sequence[str], pairs: Sequence[str]) -> list[int]:
    return [len(text) + len(pair) for text, pair in zip(texts, pairs or [""] * len(texts), strict=False)]
