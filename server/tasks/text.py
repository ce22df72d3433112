"""From texts to tokens, with the tokenizer that came with the model. Never cuts and never pads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from server.artifact import Artifact
from server.errors import BadArtifact, InvalidRequest
from server.generation.text import Detokenizer

# A token is seldom longer than a few characters: what is longer than this is refused before it is read.
MAX_CHARACTERS_PER_TOKEN = 250
Given = TypeVar("Given")
Read = TypeVar("Read")


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text as the model reads it: (t) each, INT64, special tokens included."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)


class TextEncoder:
    """The tokenizer of one model, with the length that the model can take. Safe to use from several threads."""

    def __init__(self, artifact: Artifact) -> None:
        text = artifact.manifest.text
        self.max_length = text.max_length
        self.mask_id = text.mask_id if text.HasField("mask_id") else None
        self.pad_id = text.pad_id
        path = artifact.path(text.tokenizer)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise BadArtifact(f"{path}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, texts: Sequence[str], *, field: str = "texts") -> list[Tokens]:
        """Tokens of each text. InvalidRequest names the text that is empty or too long."""
        for number, text in enumerate(texts):
            self._check_characters(f"{field}[{number}]", text)
        encodings = self._read(self._tokenizer.encode_batch_fast, list(texts), field)
        for number, encoding in enumerate(encodings):
            self._check_length(f"{field}[{number}]", encoding)
        return [_tokens(encoding) for encoding in encodings]

    def encode_one(self, text: str, *, field: str) -> Tokens:
        """Tokens of one text. InvalidRequest names the field if it is empty or too long."""
        self._check_characters(field, text)
        encoding = self._read(self._tokenizer.encode, text, field)
        self._check_length(field, encoding)
        return _tokens(encoding)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def piece_by_piece(self) -> Detokenizer:
        """Decodes tokens that come one after the other, special ones left out."""
        return Detokenizer(self._tokenizer)

    def token(self, token_id: int) -> str:
        """How a token is spelled in the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _read(self, encode: Callable[[Given], Read], given: Given, field: str) -> Read:
        """Some vocabularies have no token for what they do not know, those of single letters above all."""
        try:
            return encode(given)
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise InvalidRequest(field, f"what the tokenizer has no token for ({error})", "text it knows") from error

    def _check_characters(self, field: str, text: str) -> None:
        if not text.strip():
            raise InvalidRequest(field, "an empty text" if not text else "only white space", "some text")
        most = self.max_length * MAX_CHARACTERS_PER_TOKEN
        if len(text) > most:
            raise InvalidRequest(field, f"{len(text)} characters", f"at most {self.max_length} tokens")

    def _check_length(self, field: str, encoding: Encoding) -> None:
        if len(encoding) > self.max_length:
            raise InvalidRequest(field, f"{len(encoding)} tokens", f"at most {self.max_length}")


def _tokens(encoding: Encoding) -> Tokens:
    return Tokens(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64))
