"""Golden texts: texts in an artifact, with the token ids that the source's own tokenizer gives for them.

The server runs its tokenizer over them before it serves the model, and `verify` does the same here. They contain the
cases that tokenizers treat differently: case, accents, scripts, white space, and the special tokens of this tokenizer.
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
from export.inputs.text.characters import Characters
from export.inputs.text.tokenizer import EXPECTED, LoadedTokenizer, loaded, quiet, reraise_if_foreign
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
MIN_TEXTS = 16
MAX_SPECIAL = 24  # special tokens that get a text of their own
CHARACTER_TEXTS, CHARACTER_LENGTHS = 15, (1, 40)
DECODED = ("fill-mask", "generate")  # tasks that decode tokens to text


class Reference(Protocol):
    """The source's own tokenizer, in the library that defines it."""

    def encode(self, text: str, pair: str | None, *, max_length: int) -> tuple[list[int], list[int]]:
        """Token ids and token types, truncated to `max_length` tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special tokens."""


class TransformersReference:
    """A tokenizer of transformers."""

    def __init__(self, tokenizer: LoadedTokenizer) -> None:
        self._tokenizer, self._settings = tokenizer.reference, tokenizer.text_input

    def encode(self, text: str, pair: str | None, *, max_length: int) -> tuple[list[int], list[int]]:
        arguments = {"truncation": "longest_first", "max_length": max_length, "return_token_type_ids": True}
        if pair == "" and self._settings.empty_pairs:  # as lists, as a cross-encoder calls its tokenizer
            found = {key: rows[0] for key, rows in self._tokenizer([text], [pair], **arguments).items()}
        else:
            found = self._tokenizer(text, pair, **arguments)
        return found["input_ids"], found["token_type_ids"] if self._settings.token_types else []

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))


class CharacterReference:
    """nanoGPT's vocabulary of characters."""

    def __init__(self, characters: Characters) -> None:
        self._characters = characters

    def encode(self, text: str, pair: str | None, *, max_length: int) -> tuple[list[int], list[int]]:
        return [self._characters[character] for character in text][:max_length], []

    def decode(self, ids: Sequence[int]) -> str:
        characters = {number: character for character, number in self._characters.items()}
        return "".join(characters[number] for number in ids)


def make(tokenizer: LoadedTokenizer, task: str) -> GoldenTexts:
    """The golden texts for a tokenizer, with the reference's results.

    ExportError if the stored tokenizer gives others: then the reference does more than the stored file can describe.
    """
    settings = tokenizer.text_input
    characters = tokenizer.reference if isinstance(tokenizer.reference, dict) else None
    reference: Reference = CharacterReference(characters) if characters else TransformersReference(tokenizer)
    golden = GoldenTexts(settings=settings, tokenizer_sha256=digest(tokenizer.json))
    refusal = ""
    with quiet():
        make_probes = partial(transformers_probes, tokenizer, task)
        if characters:
            make_probes = partial(character_probes, characters, settings)
        for probe in loaded(lambda: list(make_probes()), type(tokenizer.reference).__name__):
            try:
                add_reference(probe, reference, settings, decodes=task in DECODED)
            except BaseException as error:  # a vocabulary without an unknown token; no library raises anything narrower
                reraise_if_foreign(error)
                refusal = str(error)
                continue
            golden.texts.append(probe)
    if len(golden.texts) < MIN_TEXTS:
        raise ExportError(f"tokenizer: found {len(golden.texts)} texts that it reads ({refusal}), expected {MIN_TEXTS}")
    try:
        check(golden, tokenizer.json, settings)
    except ExportError as error:
        kind = type(tokenizer.reference).__name__
        raise ExportError(f"tokenizer: {kind} does more than a {TOKENIZER} can say: {error}; {EXPECTED}") from error
    return golden


def add_reference(probe: GoldenText, reference: Reference, settings: TextInput, *, decodes: bool) -> None:
    """Add the reference's results to a golden text."""
    pair = probe.pair if probe.HasField("pair") else None
    ids, types = reference.encode(with_prompt(probe, settings), pair, max_length=settings.max_length)
    probe.input_ids.extend(ids)
    probe.token_type_ids.extend(types)
    if decodes:
        probe.decoded = reference.decode(ids)


def transformers_probes(tokenizer: LoadedTokenizer, task: str) -> Iterator[GoldenText]:
    """Texts for a tokenizer of transformers, then pairs or prompts if the task has them."""
    special = special_texts(tokenizer)
    longest = too_long(tokenizer)
    for probe in (*PROBES, *special, longest):
        yield GoldenText(text=probe)
    if task == "classify-text":
        for first, second in (*PAIRS, *((PLAIN, each) for each in special[:1]), (longest, longest), (PLAIN, longest)):
            yield GoldenText(text=first, pair=second)
    for name in ("", *sorted(tokenizer.text_input.prompts)) if tokenizer.text_input.prompts else ():
        for probe in (PLAIN, "", longest):
            yield GoldenText(text=probe, prompt_name=name)
    for probe in known_texts(tokenizer):
        yield GoldenText(text=probe)


def special_texts(tokenizer: LoadedTokenizer) -> list[str]:
    """Texts that contain the special and added tokens of this tokenizer: one with all of them, then one for each."""
    added = [token.content for _, token in sorted(tokenizer.reference.added_tokens_decoder.items())]
    tokens = list(dict.fromkeys([*tokenizer.reference.all_special_tokens, *added]))[:MAX_SPECIAL]
    if not tokens:
        return []
    return [" ".join(["all", *tokens, "of", *reversed(tokens)])] + [f"one {each} two{each}three" for each in tokens]


def known_texts(tokenizer: LoadedTokenizer) -> list[str]:
    """Texts of the tokenizer's own tokens, for tokenizers that accept no others."""
    ids, drawn = sorted(tokenizer.reference.get_vocab().values()), random.Random(0)
    return [tokenizer.reference.decode(drawn.choices(ids, k=number)) for number in range(1, MIN_TEXTS + 1)]


def too_long(tokenizer: LoadedTokenizer) -> str:
    """A text of more tokens than the model takes, without repetition, so that it shows where it is truncated."""
    count = tokenizer.text_input.max_length
    return " ".join(f"{PLAIN.split()[number % 9]} {number}" for number in range(count))


def character_probes(characters: Characters, settings: TextInput) -> Iterator[GoldenText]:
    """Texts of characters that the model knows."""
    alphabet, drawn = sorted(characters), random.Random(0)
    lengths = [drawn.randint(*CHARACTER_LENGTHS) for _ in range(CHARACTER_TEXTS)]
    for length in (*lengths, 0, settings.max_length + len(alphabet)):
        yield GoldenText(text="".join(drawn.choices(alphabet, k=length)))
    yield GoldenText(text="".join(alphabet))


def with_prompt(probe: GoldenText, settings: TextInput) -> str:
    """The text with its prompt before it, as the tokenizer reads it."""
    name = probe.prompt_name if probe.HasField("prompt_name") else settings.default_prompt_name
    return settings.prompts[name] + probe.text if name else probe.text


def to_json(golden: GoldenTexts) -> bytes:
    """The contents of the file in the artifact."""
    return (MessageToJson(golden, preserving_proto_field_name=True, indent=1) + "\n").encode()


def verify(directory: Path, golden: GoldenTexts, settings: TextInput) -> dict[str, int]:
    """Check the tokenizer of an artifact; returns the number of golden texts. ExportError as in `check`."""
    tokenizer = (directory / settings.tokenizer).read_text("utf-8")
    try:
        count = check(golden, tokenizer, settings)
    except ExportError as error:
        raise ExportError(f"{directory}: {error}") from error
    if golden.tokenizer_sha256 not in ("", digest(tokenizer)):
        raise ExportError(f"{directory}: found another {settings.tokenizer} than when the golden texts were made")
    return {"golden_texts": count}


def digest(tokenizer: str) -> str:
    """The sha256 of a tokenizer's file, which also detects a changed token that is in no golden text."""
    return sha256(tokenizer.encode()).hexdigest()


def check(golden: GoldenTexts, tokenizer: str, settings: TextInput) -> int:
    """Compare a stored tokenizer with the reference; returns the number of texts. ExportError for a difference."""
    for name in differing(golden.settings, settings):
        raise ExportError(f"manifest: text.{name} has changed since the golden texts were made: export again")
    reader = Tokenizer.from_str(tokenizer)
    reader.encode_special_tokens = settings.split_special_tokens
    writer = decoder(reader, settings)
    reader.enable_truncation(settings.max_length, direction=settings.truncation_side)
    for number, probe in enumerate(golden.texts):
        name = f"golden text {number} ({probe.text[:40]!r})"
        found = encode_golden(reader, probe, settings)
        check_equal(name, "token", found.ids, probe.input_ids)
        if settings.token_types:
            check_equal(name, "token type", found.type_ids, probe.token_type_ids)
        if probe.HasField("decoded"):
            decoded = writer.decode(list(probe.input_ids), skip_special_tokens=True)
            if decoded != probe.decoded:
                raise ExportError(f"{name}: found {decoded!r} when decoded, expected {probe.decoded!r} of transformers")
    return len(golden.texts)


def decoder(reader: Tokenizer, settings: TextInput) -> PreTrainedTokenizerFast:
    """The decoder of a stored tokenizer with the manifest's settings."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library has no annotations
        tokenizer_object=reader,
        clean_up_tokenization_spaces=settings.clean_up_spaces,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )


def encode_golden(reader: Tokenizer, probe: GoldenText, settings: TextInput) -> Encoding:
    """Encode a golden text. A pair with an empty second text is a single text, unless the settings say otherwise."""
    is_pair = probe.HasField("pair") and (probe.pair or settings.empty_pairs)
    return reader.encode(with_prompt(probe, settings), probe.pair if is_pair else None)


def check_equal(name: str, what: str, found: Sequence[int], expected: Sequence[int]) -> None:
    """ExportError with the first position at which two lists differ."""
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
