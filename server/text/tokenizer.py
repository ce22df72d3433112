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
from server.text.detokenizer import Detokenizer, clean_up
from server.text.positions import positions

# A token is seldom longer than a few characters: what is longer than this is refused before it is read, or cut there.
MAX_CHARACTERS_PER_TOKEN = 250
Name = Callable[[int], str]  # the number of an input → what its caller knows it as


@dataclass(frozen=True, eq=False)
class EncodedText:
    """A text, or a pair of texts, as the model reads it: (t) each, INT64, special tokens included."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64] | None = None  # 0, 1, 2, … if None
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def usage(self) -> "TokenUsage":
        return TokenUsage(len(self), self.truncated)


@dataclass(frozen=True)
class TokenUsage:
    """How much of an input the model has read."""

    tokens: int
    truncated: bool


class TextEncoder:
    """The tokenizer of one model, with the length that the model can take. Safe to use from several threads."""

    def __init__(self, artifact: Artifact) -> None:
        self.text = text = artifact.manifest.text
        self.max_length = text.max_length
        self.mask_id = text.mask_id if text.HasField("mask_id") else None
        self.pad_id = text.pad_id if text.HasField("pad_id") else None
        self.begin_id = text.begin_id if text.HasField("begin_id") else None
        self._prompts, self._default_prompt = dict(text.prompts), text.default_prompt_name
        self._on_left = text.truncation_side == "left"
        if not text.tokenizer:
            raise BadArtifact(f"{artifact.directory}: found no text.tokenizer in the manifest, expected a file's name")
        path = artifact.path(text.tokenizer)
        try:
            self._tokenizer, self._cutting = Tokenizer.from_file(str(path)), Tokenizer.from_file(str(path))
        except BaseException as error:  # the tokenizers library raises nothing narrower
            reraise_if_foreign(error)
            raise BadArtifact(f"{path}: {error}") from error
        for tokenizer in (self._tokenizer, self._cutting):
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = text.split_special_tokens
        side = "left" if self._on_left else "right"
        self._cutting.enable_truncation(self.max_length, strategy="longest_first", direction=side)

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
    ) -> list[EncodedText]:
        """Tokens of each text behind its prompt, or of each with the one of `pairs` that belongs to it.

        What is too long is cut as transformers cuts it: on the model's side, of a pair from the longer text.
        InvalidRequest names the text that has no tokens, has one that the model does not know, or is too long without
        `truncate`; the first of these has the number `first`.
        """
        name, pair_name = partial(_numbered, field, first), partial(_numbered, pair_field, first)
        texts = self.prompted(texts, prompt_name)
        inputs = self._inputs(self._readable(texts, truncate, name), self._readable(pairs, truncate, pair_name))
        tokens = []
        for number, encoding in enumerate(self._read(self._tokenizer, inputs, name)):
            cut = any(len(group[number]) > self.max_characters for group in (texts, pairs) if group)
            if len(encoding) > self.max_length:
                if not truncate:
                    most = f"at most {self.max_length} (or `truncate`)"
                    raise InvalidRequest(name(number), f"{len(encoding)} tokens", most)
                (encoding,) = self._read(self._cutting, [inputs[number]], _from(name, number))
                cut = True
            if not encoding.ids:
                raise InvalidRequest(name(number), "a text without tokens", "some text")
            self._check_known(encoding, name(number), pair_name(number))
            tokens.append(self._tokens(encoding, truncated=cut))
        return tokens

    def encode_as_is(self, text: str, pair: str | None, *, prompt_name: str | None) -> Encoding:
        """What the tokenizer makes of a text, cut to the model's length, though the model might not take it."""
        inputs = self._inputs(self.prompted([text], prompt_name), [] if pair is None else [pair])
        (encoding,) = self._read(self._cutting, inputs, lambda _: "text")
        return encoding

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
    def max_characters(self) -> int:
        """That are read of a text."""
        return self.max_length * MAX_CHARACTERS_PER_TOKEN

    def encode_one(self, text: str, *, field: str) -> EncodedText:
        """Tokens of one text; of an empty one, the token with which the model begins.

        InvalidRequest names the field if there are none, too many, or one that the model does not know.
        """
        self._check_characters(field, text)
        (encoding,) = self._read(self._tokenizer, [text], lambda _: field)
        if not encoding.ids:
            return self._begun(field, text)
        if len(encoding) > self.max_length:
            raise InvalidRequest(field, f"{len(encoding)} tokens", f"at most {self.max_length}")
        self._check_known(encoding, field, field)
        return self._tokens(encoding)

    def _begun(self, field: str, text: str) -> EncodedText:
        """What stands for a text without tokens. InvalidRequest if the model has no token to begin with."""
        if self.begin_id is None:
            found = "a text without tokens" if text else "an empty text"
            raise InvalidRequest(field, found, "some text: the model has no token to begin with")
        return EncodedText(np.array([self.begin_id], np.int64), np.zeros(1, np.int64))

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
        return [len(encoding) for encoding in self._read(self._tokenizer, self._inputs(texts, pairs), name)]

    def token_id(self, word: str, *, field: str) -> int:
        """The id of a word that is one token. InvalidRequest tells into which tokens any other falls."""
        if len(word) > MAX_CHARACTERS_PER_TOKEN:
            raise InvalidRequest(field, f"{len(word)} characters", "a word that is one token of the model")
        found: int | None = self._tokenizer.token_to_id(word)
        if found is not None:
            return self._known(found, field)
        (pieces,) = self._read(self._tokenizer, [word], lambda _: field, special=False)
        tokens = [self.token(piece) for piece in pieces.ids]
        if len(tokens) != 1 or tokens[0] == getattr(self._tokenizer.model, "unk_token", None):
            spelled = f"tokens {', '.join(map(repr, tokens))}" if tokens else "no token"
            raise InvalidRequest(field, f"{word!r} ({spelled})", "a word that is one token of the model")
        return self._known(int(pieces.ids[0]), field)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self.text.clean_up_spaces else text

    def detokenizer(self) -> Detokenizer:
        """Decodes tokens that come one after the other, special ones left out."""
        return Detokenizer(self._tokenizer, cleans_up=self.text.clean_up_spaces)

    def token(self, token_id: int) -> str:
        """How a token is spelled in the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _read(self, tokenizer: Tokenizer, inputs: Sequence[Any], name: Name, *, special: bool = True) -> list[Encoding]:
        """Some vocabularies have no token for what they do not know, those of single letters above all."""
        try:
            return list(tokenizer.encode_batch_fast(list(inputs), add_special_tokens=special))
        except BaseException as error:  # the tokenizers library raises nothing narrower, and does not say which
            reraise_if_foreign(error)
            if len(inputs) > 1:
                for number, each in enumerate(inputs):
                    self._read(tokenizer, [each], _from(name, number), special=special)
            raise InvalidRequest(name(0), f"what the tokenizer has no token for ({error})", "text it knows") from error

    def _inputs(self, texts: Sequence[str], pairs: Sequence[str]) -> list[Any]:
        """Texts, or pairs of them, as the tokenizers library takes them.

        With an empty second text a pair is a single text for transformers, though not for its cross-encoders.
        """
        if not pairs:
            return list(texts)
        both = zip(texts, pairs, strict=True)
        return [(text, pair) if pair or self.text.empty_pairs else text for text, pair in both]

    def _tokens(self, encoding: Encoding, *, truncated: bool = False) -> EncodedText:
        ids = np.array(encoding.ids, np.int64)
        types = np.array(encoding.type_ids, np.int64) if self.text.token_types else np.zeros_like(ids)
        return EncodedText(ids, types, positions(ids, self.text), truncated)

    def _known(self, token_id: int, field: str) -> int:
        """The id of a token that the model has a row for, or InvalidRequest."""
        if token_id >= self.text.vocabulary:
            expected = f"a token of the model, whose ids end at {self.text.vocabulary - 1}"
            raise InvalidRequest(field, f"the token {self.token(token_id)!r} (id {token_id})", expected)
        return token_id

    def _check_known(self, encoding: Encoding, field: str, pair_field: str) -> None:
        """A tokenizer may have more tokens than the model has rows for."""
        if max(encoding.ids) < self.text.vocabulary:
            return
        for token_id, text in zip(encoding.ids, encoding.sequence_ids, strict=True):
            self._known(token_id, pair_field if text == 1 else field)

    def _readable(self, texts: Sequence[str], truncate: bool, name: Name) -> list[str]:
        """The texts as far as they are to be read: without `truncate` as they are, or InvalidRequest."""
        if not truncate:
            for number, text in enumerate(texts):
                self._check_characters(name(number), text)
        most = self.max_characters
        return [text[-most:] if self._on_left else text[:most] for text in texts]

    def _check_characters(self, field: str, text: str) -> None:
        if len(text) > self.max_characters:
            raise InvalidRequest(field, f"{len(text)} characters", f"at most {self.max_length} tokens")


def reraise_if_foreign(error: BaseException) -> None:
    """Let pass what is no error of the tokenizers library: where its Rust code panics, it raises no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def check_pairs(texts: Sequence[str], pairs: Sequence[str], pair_field: str) -> None:
    if pairs and len(pairs) != len(texts):
        raise InvalidRequest(pair_field, f"{len(pairs)} texts", f"{len(texts)}, one for each text, or none")


def _numbered(field: str, first: int, number: int) -> str:
    return f"{field}[{first + number}]"


def _from(name: Name, start: int) -> Name:
    return lambda number: name(start + number)
