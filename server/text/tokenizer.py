"""Encodes texts with the tokenizer of the model. Never pads; truncates only where a request allows it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from server.artifact import Artifact
from server.errors import BadArtifact, InvalidRequest
from server.text.detokenizer import Detokenizer, clean_up
from server.text.positions import positions
from server.text.tokenizer_file import TokenizerSettings, open_tokenizer, reraise_if_foreign

# Tokens seldom have more than a few characters. A text with more than this per token is refused, or truncated, before
# it is encoded.
MAX_CHARACTERS_PER_TOKEN = 250
# Texts of so many characters together are encoded in the calling thread, which holds the interpreter lock. For more the
# library uses threads of its own, and waits for them: on busy CPUs longer than a short text takes.
FEW_CHARACTERS = 256
MAX_DECODED = 1 << 14  # tokens of which the text is kept: a megabyte or two
TextOrPair = str | tuple[str, str]
Name = Callable[[int], str]  # the number of an input → its name in errors


@dataclass(frozen=True, eq=False)
class EncodedText:
    """A text, or a pair of texts, as input of a model: (t,) each, INT64, including special tokens."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64] | None = None  # None for 0, 1, 2, …
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def usage(self) -> "TokenUsage":
        return TokenUsage(len(self), self.truncated)


@dataclass(frozen=True)
class TokenUsage:
    """The number of tokens that the model read of an input, and whether the rest was cut off."""

    tokens: int
    truncated: bool


class TextEncoder:
    """The tokenizer of one model, with the model's maximum length. Threads may share it."""

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
        settings = TokenizerSettings(split_special_tokens=text.split_special_tokens)
        truncating = replace(settings, max_length=self.max_length, truncation_side="left" if self._on_left else "right")
        path = artifact.path(text.tokenizer)
        self._tokenizer, self._truncating = open_tokenizer(path, settings), open_tokenizer(path, truncating)
        self._decoded = lru_cache(MAX_DECODED)(lambda token_id: self.decode([token_id]))

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
        """Encode each text with its prompt in front, or each text with its second text in `pairs`.

        Truncates as transformers does: on the truncation side of the model's tokenizer, and a pair in its longer text.
        InvalidRequest names a text without tokens, with a token that the model does not know, or that is too long
        without `truncate`. `first` is the number of the first text in these names.
        """
        name, pair_name = partial(_numbered, field, first), partial(_numbered, pair_field, first)
        texts = self.prompted(texts, prompt_name)
        inputs = self._inputs(self._cut(texts, truncate, name), self._cut(pairs, truncate, pair_name))
        tokens = []
        for number, encoding in enumerate(self._encode(self._tokenizer, inputs, name)):
            truncated = any(len(group[number]) > self.max_characters for group in (texts, pairs) if group)
            if len(encoding) > self.max_length:
                if not truncate:
                    expected = f"at most {self.max_length} (or `truncate`)"
                    raise InvalidRequest(name(number), f"{len(encoding)} tokens", expected)
                (encoding,) = self._encode(self._truncating, [inputs[number]], _from(name, number))
                truncated = True
            if not encoding.ids:
                raise InvalidRequest(name(number), "a text without tokens", "some text")
            self._check_ids(encoding, name(number), pair_name(number))
            tokens.append(self._tokens(encoding, truncated=truncated))
        return tokens

    def encode_as_is(self, text: str, pair: str | None, *, prompt_name: str | None) -> Encoding:
        """Encode a text, truncated to the model's length, without checking that the model has all of its tokens."""
        inputs = self._inputs(self.prompted([text], prompt_name), [] if pair is None else [pair])
        (encoding,) = self._encode(self._truncating, inputs, lambda _: "text")
        return encoding

    def prompted(self, texts: Sequence[str], prompt_name: str | None) -> Sequence[str]:
        """The texts with one of the model's prompts in front of each, or in front of the first text of each pair.

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
        """The number of characters that are encoded of a text."""
        return self.max_length * MAX_CHARACTERS_PER_TOKEN

    def encode_one(self, text: str, *, field: str) -> EncodedText:
        """Encode one text. An empty text becomes the token with which the model begins.

        InvalidRequest if there are no tokens, too many, or one that the model does not know.
        """
        self._check_characters(field, text)
        (encoding,) = self._encode(self._tokenizer, [text], lambda _: field)
        if not encoding.ids:
            return self._begin(field, text)
        if len(encoding) > self.max_length:
            raise InvalidRequest(field, f"{len(encoding)} tokens", f"at most {self.max_length}")
        self._check_ids(encoding, field, field)
        return self._tokens(encoding)

    def _begin(self, field: str, text: str) -> EncodedText:
        """The tokens for a text that has none. InvalidRequest if the model has no token to begin with."""
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
        """The number of tokens of each text with its prompt, or of each pair, even if the model would refuse them."""
        texts = self.prompted(texts, prompt_name)
        for named, group in ((field, texts), (pair_field, pairs)):
            for number, text in enumerate(group):
                self._check_characters(_numbered(named, first, number), text)
        name = partial(_numbered, field, first)
        return [len(encoding) for encoding in self._encode(self._tokenizer, self._inputs(texts, pairs), name)]

    def token_id(self, word: str, *, field: str) -> int:
        """The id of a word that is a single token. InvalidRequest lists the tokens of any other word."""
        if len(word) > MAX_CHARACTERS_PER_TOKEN:
            raise InvalidRequest(field, f"{len(word)} characters", "a word that is one token of the model")
        found: int | None = self._tokenizer.token_to_id(word)
        if found is not None:
            return self._checked_id(found, field)
        (encoding,) = self._encode(self._tokenizer, [word], lambda _: field, special=False)
        tokens = [self.token(token_id) for token_id in encoding.ids]
        if len(tokens) != 1 or tokens[0] == getattr(self._tokenizer.model, "unk_token", None):
            spelled = f"tokens {', '.join(map(repr, tokens))}" if tokens else "no token"
            raise InvalidRequest(field, f"{word!r} ({spelled})", "a word that is one token of the model")
        return self._checked_id(int(encoding.ids[0]), field)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self.text.clean_up_spaces else text

    def decode_token(self, token_id: int) -> str:
        """The text of a token by itself."""
        return self._decoded(token_id)

    def detokenizer(self) -> Detokenizer:
        """A decoder of tokens that are generated one after the other. It leaves special tokens out."""
        return Detokenizer(self._tokenizer, cleans_up=self.text.clean_up_spaces)

    def token(self, token_id: int) -> str:
        """The text of a token in the vocabulary."""
        return self._tokenizer.id_to_token(token_id) or ""

    def _encode(
        self, tokenizer: Tokenizer, inputs: Sequence[TextOrPair], name: Name, *, special: bool = True
    ) -> list[Encoding]:
        """Encode texts or pairs. InvalidRequest for a character without a token, if there is no unknown token."""
        try:
            if sum(map(_characters, inputs)) <= FEW_CHARACTERS:
                return [tokenizer.encode(*_pair(each), add_special_tokens=special) for each in inputs]
            return list(tokenizer.encode_batch_fast(list(inputs), add_special_tokens=special))
        except BaseException as error:  # the tokenizers library raises nothing narrower, for an unnamed text
            reraise_if_foreign(error)
            if len(inputs) > 1:
                for number, each in enumerate(inputs):
                    self._encode(tokenizer, [each], _from(name, number), special=special)
            raise InvalidRequest(
                name(0), f"a character that the tokenizer has no token for ({error})", "text it knows"
            ) from error

    def _inputs(self, texts: Sequence[str], pairs: Sequence[str]) -> Sequence[TextOrPair]:
        """Texts, or pairs of them, as the tokenizers library expects them.

        transformers encodes a pair with an empty second text as a single text, but not for its cross-encoders.
        """
        if not pairs:
            return texts
        both = zip(texts, pairs, strict=True)
        return [(text, pair) if pair or self.text.empty_pairs else text for text, pair in both]

    def _tokens(self, encoding: Encoding, *, truncated: bool = False) -> EncodedText:
        ids = np.array(encoding.ids, np.int64)
        types = np.array(encoding.type_ids, np.int64) if self.text.token_types else np.zeros_like(ids)
        return EncodedText(ids, types, positions(ids, self.text), truncated)

    def _checked_id(self, token_id: int, field: str) -> int:
        """The id of a token that has a row in the model's embedding; InvalidRequest for any other."""
        if token_id >= self.text.vocabulary:
            expected = f"a token of the model, whose ids end at {self.text.vocabulary - 1}"
            raise InvalidRequest(field, f"the token {self.token(token_id)!r} (id {token_id})", expected)
        return token_id

    def _check_ids(self, encoding: Encoding, field: str, pair_field: str) -> None:
        """InvalidRequest for a token without a row in the model's embedding: tokenizers may have more tokens."""
        if max(encoding.ids) < self.text.vocabulary:
            return
        for token_id, text in zip(encoding.ids, encoding.sequence_ids, strict=True):
            self._checked_id(token_id, pair_field if text == 1 else field)

    def _cut(self, texts: Sequence[str], truncate: bool, name: Name) -> list[str]:
        """The texts, cut to `max_characters`. InvalidRequest for a longer text without `truncate`."""
        if not truncate:
            for number, text in enumerate(texts):
                self._check_characters(name(number), text)
        count = self.max_characters
        return [text[-count:] if self._on_left else text[:count] for text in texts]

    def _check_characters(self, field: str, text: str) -> None:
        if len(text) > self.max_characters:
            raise InvalidRequest(field, f"{len(text)} characters", f"at most {self.max_length} tokens")


def check_pairs(texts: Sequence[str], pairs: Sequence[str], pair_field: str) -> None:
    if pairs and len(pairs) != len(texts):
        raise InvalidRequest(pair_field, f"{len(pairs)} texts", f"{len(texts)}, one for each text, or none")


def _pair(each: TextOrPair) -> tuple[str, str | None]:
    return (each, None) if isinstance(each, str) else each


def _characters(each: TextOrPair) -> int:
    return len(each) if isinstance(each, str) else sum(map(len, each))


def _numbered(field: str, first: int, number: int) -> str:
    return f"{field}[{first + number}]"


def _from(name: Name, start: int) -> Name:
    return lambda number: name(start + number)
