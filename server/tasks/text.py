"""From texts to tokens, with the tokenizer that came with the model. Never pads; cuts only where a request says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from server.artifact import Artifact
from server.errors import BadArtifact, InvalidRequest
from server.generation.text import Detokenizer

# A token is seldom longer than a few characters: what is longer than this is refused before it is read, or cut there.
MAX_CHARACTERS_PER_TOKEN = 250
Name = Callable[[int], str]  # the number of an input → what its caller knows it as


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text, or a pair of texts, as the model reads it: (t) each, INT64, special tokens included."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def reading(self) -> "Reading":
        return Reading(len(self), self.truncated)


@dataclass(frozen=True)
class Reading:
    """How much of an input the model has read."""

    tokens: int
    truncated: bool


class TextEncoder:
    """The tokenizer of one model, with the length that the model can take. Safe to use from several threads."""

    def __init__(self, artifact: Artifact) -> None:
        text = artifact.manifest.text
        self.max_length = text.max_length
        self.mask_id = text.mask_id if text.HasField("mask_id") else None
        self.pad_id = text.pad_id
        self._prompts, self._default_prompt = dict(text.prompts), text.default_prompt_name
        path = artifact.path(text.tokenizer)
        try:
            self._tokenizer, self._cutting = Tokenizer.from_file(str(path)), Tokenizer.from_file(str(path))
        except Exception as error:  # the tokenizers library raises nothing narrower
            raise BadArtifact(f"{path}: {error}") from error
        for tokenizer in (self._tokenizer, self._cutting):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._cutting.enable_truncation(self.max_length, strategy="longest_first", direction="right")

    def encode(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] = (),
        *,
        prompt_name: str | None = None,
        truncate: bool = False,
        first: int = 0,
        field: str = "texts",
        pair_field: str = "text_pairs",
    ) -> list[Tokens]:
        """Tokens of each text behind its prompt, or of each with the one of `pairs` that belongs to it.

        What is too long is cut as transformers cuts it: on the right, of a pair from the longer text. InvalidRequest
        names the text that is empty, or too long without `truncate`; the first of these has the number `first`.
        """
        name, pair_name = partial(_numbered, field, first), partial(_numbered, pair_field, first)
        texts = self.prompted(texts, prompt_name)
        inputs = _inputs(self._readable(texts, truncate, name), self._readable(pairs, truncate, pair_name))
        tokens = []
        for number, encoding in enumerate(self._read(self._tokenizer, inputs, name)):
            if len(encoding) <= self.max_length:
                cut = any(len(group[number]) > self.most_characters for group in (texts, pairs) if group)
                tokens.append(_tokens(encoding, truncated=cut))
            elif truncate:
                (encoding,) = self._read(self._cutting, [inputs[number]], partial(_numbered, field, first + number))
                tokens.append(_tokens(encoding, truncated=True))
            else:
                most = f"at most {self.max_length} (or `truncate`)"
                raise InvalidRequest(name(number), f"{len(encoding)} tokens", most)
        return tokens

    def prompted(self, texts: Sequence[str], prompt_name: str | None) -> Sequence[str]:
        """The texts with a prompt of the model before each of them, or before the first text of each pair.

        None stands for the model's default prompt, an empty name for no prompt. InvalidRequest for an unknown name.
        """
        name = self._default_prompt if prompt_name is None else prompt_name
        if name and name not in self._prompts:
            known = ", ".join(map(repr, sorted(self._prompts)))
            expected = f"one of {known}, or '' for no prompt" if known else "none: the model has no prompts"
            raise InvalidRequest("prompt_name", repr(name), expected)
        prompt = self._prompts[name] if name else ""
        return [prompt + text for text in texts] if prompt else texts

    @property
    def most_characters(self) -> int:
        """That are read of a text."""
        return self.max_length * MAX_CHARACTERS_PER_TOKEN

    def encode_one(self, text: str, *, field: str) -> Tokens:
        """Tokens of one text, be it a line break alone. InvalidRequest names the field if it has none or too many."""
        self._check_characters(field, text)
        (encoding,) = self._read(self._tokenizer, [text], lambda _: field)
        if not encoding.ids:
            raise InvalidRequest(field, "a text without tokens" if text else "an empty text", "some text")
        if len(encoding) > self.max_length:
            raise InvalidRequest(field, f"{len(encoding)} tokens", f"at most {self.max_length}")
        return _tokens(encoding)

    def count(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] = (),
        *,
        prompt_name: str | None = None,
        first: int = 0,
        field: str,
        pair_field: str,
    ) -> list[int]:
        """How many tokens each text with its prompt, or pair, is: also of what the model would not take."""
        texts = self.prompted(texts, prompt_name)
        for named, group in ((field, texts), (pair_field, pairs)):
            for number, text in enumerate(group):
                self._check_characters(_numbered(named, first, number), text)
        name = partial(_numbered, field, first)
        return [len(encoding) for encoding in self._read(self._tokenizer, _inputs(texts, pairs), name)]

    def word(self, word: str, *, field: str) -> int:
        """The id of a word that is one token. InvalidRequest tells into which tokens any other falls."""
        if len(word) > MAX_CHARACTERS_PER_TOKEN:
            raise InvalidRequest(field, f"{len(word)} characters", "a word that is one token of the model")
        found: int | None = self._tokenizer.token_to_id(word)
        if found is not None:
            return found
        (pieces,) = self._read(self._tokenizer, [word], lambda _: field, special=False)
        tokens = [self.token(piece) for piece in pieces.ids]
        if len(tokens) != 1 or tokens[0] == getattr(self._tokenizer.model, "unk_token", None):
            spelled = f"tokens {', '.join(map(repr, tokens))}" if tokens else "no token"
            raise InvalidRequest(field, f"{word!r} ({spelled})", "a word that is one token of the model")
        return int(pieces.ids[0])

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def piece_by_piece(self) -> Detokenizer:
        """Decodes tokens that come one after the other, special ones left out."""
        return Detokenizer(self._tokenizer)

    def token(self, token_id: int) -> str:
        """How a token is spelled in the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _read(self, tokenizer: Tokenizer, inputs: Sequence[Any], name: Name, *, special: bool = True) -> list[Encoding]:
        """Some vocabularies have no token for what they do not know, those of single letters above all."""
        try:
            return list(tokenizer.encode_batch_fast(list(inputs), add_special_tokens=special))
        except Exception as error:  # the tokenizers library raises nothing narrower, and does not say which
            if len(inputs) > 1:
                for number, each in enumerate(inputs):
                    self._read(tokenizer, [each], _from(name, number), special=special)
            raise InvalidRequest(name(0), f"what the tokenizer has no token for ({error})", "text it knows") from error

    def _readable(self, texts: Sequence[str], truncate: bool, name: Name) -> list[str]:
        """The texts as far as they are to be read: without `truncate` as they are, or InvalidRequest."""
        for number, text in enumerate(texts):
            self._check_some(name(number), text)
            if not truncate:
                self._check_characters(name(number), text)
        return [text[: self.most_characters] for text in texts]

    def _check_some(self, field: str, text: str) -> None:
        if not text.strip():
            raise InvalidRequest(field, "an empty text" if not text else "only white space", "some text")

    def _check_characters(self, field: str, text: str) -> None:
        if len(text) > self.most_characters:
            raise InvalidRequest(field, f"{len(text)} characters", f"at most {self.max_length} tokens")


def check_pairs(texts: Sequence[str], pairs: Sequence[str], pair_field: str) -> None:
    if pairs and len(pairs) != len(texts):
        raise InvalidRequest(pair_field, f"{len(pairs)} texts", f"{len(texts)}, one for each text, or none")


def _inputs(texts: Sequence[str], pairs: Sequence[str]) -> list[Any]:
    """Texts, or pairs of them, as the tokenizers library takes them."""
    return list(zip(texts, pairs, strict=True)) if pairs else list(texts)


def _numbered(field: str, first: int, number: int) -> str:
    return f"{field}[{first + number}]"


def _from(name: Name, start: int) -> Name:
    return lambda number: name(start + number)


def _tokens(encoding: Encoding, *, truncated: bool = False) -> Tokens:
    return Tokens(np.array(encoding.ids, np.int64), np.array(encoding.type_ids, np.int64), truncated)
