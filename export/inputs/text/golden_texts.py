"""Texts that travel with an artifact, and the token ids that the source's own tokenizer gives for them.

The server runs its tokenizer over them before it serves the model, and `verify` does the same here. They hold what
tokenizers disagree on: case, accents, scripts, white space, and the special tokens of this very tokenizer.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerFast

from export.errors import ExportError
from export.inputs import golden_inputs
from export.inputs.text.characters import Letters
from export.inputs.text.tokenizer import EXPECTED, Text, loaded, quiet, reraise_if_foreign
from protos.artifact import TOKENIZER
from protos.manifest_pb2 import GoldenText, GoldenTexts, TextInput

PLAIN = "The quick brown fox jumps over the lazy dog."
PROBES = (
    PLAIN,
    "HELLO World, iPhone and McDonald's",
    "café cafe\u0301 naïve Ångström ÇA ß İSTANBUL ıI ﬁne ½ ①",
    "good 👩‍👩‍👧‍👦🏳️‍🌈 world 👍🏽",
    "東京は大きい。한국어 你好世界",
    "שלום עולם مرحبا بالعالم",
    "Привет, мир! Γειά σου Κόσμε",
    "हिन्दी ไทย தமிழ்",
    "  leading  and   trailing  ",
    "line one\nline two\r\n\ttabbed\n",
    " ",
    "\n",
    "",
    "zero\u200bwidth \ufeffmark \xa0 no-break\u2028separator \u202eabc\u202c",
    "NUL\0 and private \ue000 \U0010ffff",
    "a" * 150,
    "1,234.50 $99 (50%) +1-2*3/4=5 me@example.org https://example.org/?q=a&b=[c]",
    "don't can't I'm you've it's ' quoted ' , so !",
    "def f(x):\n    return {x: x**2}",
    "[CLS] [SEP] [PAD] [UNK] [MASK] <s> </s> <pad> <unk> <mask> <|endoftext|>",
)
PAIRS = ((PLAIN, "Hello, world!"), (PLAIN, ""), ("", PLAIN), ("", ""), (" ", "\n"))
LEAST = 16  # texts that travel with an artifact
MOST_SPECIAL = 24  # tokens that stand in a text of their own
LETTER_TEXTS, LETTER_LENGTHS = 15, (1, 40)
DECODED = ("fill-mask", "generate")  # tasks that make text of tokens


class Reference(Protocol):
    """What decides which tokens a text has: the source's own tokenizer, in the library that defines it."""

    def encode(self, text: str, pair: str | None, *, most: int) -> tuple[list[int], list[int]]:
        """Token ids and token types, cut to `most` tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""


class OfTransformers:
    """A tokenizer of transformers."""

    def __init__(self, text: Text) -> None:
        self._tokenizer, self._settings = text.reference, text.manifest

    def encode(self, text: str, pair: str | None, *, most: int) -> tuple[list[int], list[int]]:
        arguments = {"truncation": "longest_first", "max_length": most, "return_token_type_ids": True}
        if pair == "" and self._settings.empty_pairs:  # in a list, as a cross-encoder gives it to its tokenizer
            found = {key: rows[0] for key, rows in self._tokenizer([text], [pair], **arguments).items()}
        else:
            found = self._tokenizer(text, pair, **arguments)
        return found["input_ids"], found["token_type_ids"] if self._settings.token_types else []

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class OfLetters:
    """The letters of nanoGPT."""

    def __init__(self, letters: Letters) -> None:
        self._letters = letters

    def encode(self, text: str, pair: str | None, *, most: int) -> tuple[list[int], list[int]]:
        return [self._letters[letter] for letter in text][:most], []

    def decode(self, ids: Sequence[int]) -> str:
        letters = {number: letter for letter, number in self._letters.items()}
        return "".join(letters[number] for number in ids)


def make(text: Text, task: str) -> GoldenTexts:
    """The probe texts for a tokenizer with the reference's answers.

    ExportError if the tokenizer that is stored gives others: then the reference does more than the stored file says.
    """
    settings = text.manifest
    letters = text.reference if isinstance(text.reference, dict) else None
    reference: Reference = OfLetters(letters) if letters else OfTransformers(text)
    golden = GoldenTexts(settings=settings, tokenizer_sha256=digest(text.tokenizer))
    refusal = ""
    with quiet():
        make_probes = partial(letter_probes, letters, settings) if letters else partial(word_probes, text, task)
        for probe in loaded(lambda: list(make_probes()), type(text.reference).__name__):
            try:
                answered(probe, reference, settings, decodes=task in DECODED)
            except BaseException as error:  # a vocabulary without an unknown token; no library raises anything narrower
                reraise_if_foreign(error)
                refusal = str(error)
                continue
            golden.texts.append(probe)
    if len(golden.texts) < LEAST:
        raise ExportError(f"tokenizer: found {len(golden.texts)} texts that it reads ({refusal}), expected {LEAST}")
    try:
        check(golden, text.tokenizer, settings)
    except ExportError as error:
        kind = type(text.reference).__name__
        raise ExportError(f"tokenizer: {kind} does more than a {TOKENIZER} can say: {error}; {EXPECTED}") from error
    return golden


def answered(probe: GoldenText, reference: Reference, settings: TextInput, *, decodes: bool) -> None:
    """Fill in the reference's answers."""
    pair = probe.pair if probe.HasField("pair") else None
    ids, types = reference.encode(prompted(probe, settings), pair, most=settings.max_length)
    probe.input_ids.extend(ids)
    probe.token_type_ids.extend(types)
    if decodes:
        probe.decoded = reference.decode(ids)


def word_probes(text: Text, task: str) -> Iterator[GoldenText]:
    """For any tokenizer of transformers: texts, then pairs or prompts where the task has them."""
    special = special_texts(text)
    longest = too_long(text)
    for probe in (*PROBES, *special, longest):
        yield GoldenText(text=probe)
    if task == "classify-text":
        for first, second in (*PAIRS, *((PLAIN, each) for each in special[:1]), (longest, longest), (PLAIN, longest)):
            yield GoldenText(text=first, pair=second)
    for name in ("", *sorted(text.manifest.prompts)) if text.manifest.prompts else ():
        for probe in (PLAIN, "", longest):
            yield GoldenText(text=probe, prompt_name=name)
    for probe in known_texts(text):
        yield GoldenText(text=probe)


def special_texts(text: Text) -> list[str]:
    """Texts with the special and the added tokens of this tokenizer written out: all in one, then one by one."""
    added = [token.content for _, token in sorted(text.reference.added_tokens_decoder.items())]
    tokens = list(dict.fromkeys([*text.reference.all_special_tokens, *added]))[:MOST_SPECIAL]
    if not tokens:
        return []
    return [" ".join(["all", *tokens, "of", *reversed(tokens)])] + [f"one {each} two{each}three" for each in tokens]


def known_texts(text: Text) -> list[str]:
    """Texts of the tokenizer's own tokens, for those that read no others."""
    ids, drawn = sorted(text.reference.get_vocab().values()), random.Random(0)
    return [text.reference.decode(drawn.choices(ids, k=number)) for number in range(1, LEAST + 1)]


def too_long(text: Text) -> str:
    """A text of more tokens than the model takes, no two parts of it alike: it tells where it was cut."""
    count = text.manifest.max_length
    return " ".join(f"{PLAIN.split()[number % 9]} {number}" for number in range(count))


def letter_probes(letters: Letters, settings: TextInput) -> Iterator[GoldenText]:
    """Only of letters that the model knows."""
    alphabet, drawn = sorted(letters), random.Random(0)
    lengths = [drawn.randint(*LETTER_LENGTHS) for _ in range(LETTER_TEXTS)]
    for length in (*lengths, 0, settings.max_length + len(alphabet)):
        yield GoldenText(text="".join(drawn.choices(alphabet, k=length)))
    yield GoldenText(text="".join(alphabet))


def prompted(golden: GoldenText, settings: TextInput) -> str:
    """The text as the tokenizer reads it, behind its prompt."""
    name = golden.prompt_name if golden.HasField("prompt_name") else settings.default_prompt_name
    return settings.prompts[name] + golden.text if name else golden.text


def to_json(golden: GoldenTexts) -> bytes:
    """What the file in the artifact holds."""
    return (MessageToJson(golden, preserving_proto_field_name=True, indent=1) + "\n").encode()


def verify(directory: Path, settings: TextInput) -> dict[str, int]:
    """How many golden texts the tokenizer of an artifact reads as the reference did. ExportError as `check`."""
    golden, tokenizer = golden_inputs.texts(directory), (directory / settings.tokenizer).read_text("utf-8")
    try:
        count = check(golden, tokenizer, settings)
    except ExportError as error:
        raise ExportError(f"{directory}: {error}") from error
    if golden.tokenizer_sha256 not in ("", digest(tokenizer)):
        raise ExportError(f"{directory}: found another {settings.tokenizer} than when the golden texts were made")
    return {"golden_texts": count}


def digest(tokenizer: str) -> str:
    """The sha256 of a tokenizer's file: it tells what the texts cannot, a token that is in none of them."""
    return sha256(tokenizer.encode()).hexdigest()


def check(golden: GoldenTexts, tokenizer: str, settings: TextInput) -> int:
    """How many golden texts a stored tokenizer reads as the reference did. ExportError names the first that differs."""
    for name in differing(golden.settings, settings):
        raise ExportError(f"manifest: text.{name} is not what it was when the golden texts were made: export again")
    reader = Tokenizer.from_str(tokenizer)
    reader.encode_special_tokens = settings.split_special_tokens
    writer = decoder(reader, settings)
    reader.enable_truncation(settings.max_length, direction=settings.truncation_side)
    for number, text in enumerate(golden.texts):
        name = f"golden text {number} ({text.text[:40]!r})"
        found = encoded(reader, text, settings)
        same(name, "token", found.ids, text.input_ids)
        if settings.token_types:
            same(name, "token type", found.type_ids, text.token_type_ids)
        if text.HasField("decoded"):
            decoded = writer.decode(list(text.input_ids), skip_special_tokens=True)
            if decoded != text.decoded:
                raise ExportError(f"{name}: found {decoded!r} when decoded, expected {text.decoded!r} of transformers")
    return len(golden.texts)


def decoder(reader: Tokenizer, settings: TextInput) -> PreTrainedTokenizerFast:
    """What makes text of tokens with a stored tokenizer and no more than the manifest says of it."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library annotates none of it
        tokenizer_object=reader,
        clean_up_tokenization_spaces=settings.clean_up_spaces,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )


def encoded(reader: Tokenizer, text: GoldenText, settings: TextInput) -> Encoding:
    """What the tokenizers library makes of a golden text. With an empty second text most pairs are single texts."""
    is_pair = text.HasField("pair") and (text.pair or settings.empty_pairs)
    return reader.encode(prompted(text, settings), text.pair if is_pair else None)


def same(name: str, what: str, found: Sequence[int], expected: Sequence[int]) -> None:
    """ExportError names the first position at which two lists differ."""
    if list(found) == list(expected):
        return
    at = next((n for n, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        raise ExportError(f"{name}: found {len(found)} {what}s, expected {len(expected)} as transformers reads it")
    raise ExportError(
        f"{name}: found {what} {found[at]} at position {at}, expected {expected[at]} as transformers reads it"
    )


def differing(expected: Message, found: Message) -> Iterable[str]:
    """The fields in which two messages of the same kind differ."""
    names = [field.name for field in expected.DESCRIPTOR.fields]
    present = [{field.name for field, _ in message.ListFields()} for message in (expected, found)]
    return [
        name
        for name in names
        if (name in present[0]) != (name in present[1]) or getattr(expected, name) != getattr(found, name)
    ]
