"""Checks at load that the server encodes and decodes the golden texts of an artifact as transformers did at export."""

import hashlib
from collections.abc import Sequence

from protos.artifact import GOLDEN_TEXTS
from protos.manifest_pb2 import GoldenText, TextInput
from server.artifact import Artifact
from server.errors import BadArtifact, InvalidRequest
from server.text.tokenizer import TextEncoder

SHOWN = 40  # characters of a text in an error


def check_golden_texts(encoder: TextEncoder, artifact: Artifact) -> int:
    """Encode and decode the golden texts; return their number. BadArtifact names the first difference."""
    path = artifact.path(GOLDEN_TEXTS)
    golden = artifact.golden_texts()
    _check_settings(artifact, golden.settings)
    for number, text in enumerate(golden.texts):
        found = _difference(encoder, text)
        if found:
            name = f"golden text {number} ({text.text[:SHOWN]!r})"
            raise BadArtifact(
                f"{path}: {name}: {found}: the server does not read texts as transformers did; export again"
            )
    _check_file(artifact, golden.tokenizer_sha256)
    return len(golden.texts)


def _check_file(artifact: Artifact, expected: str) -> None:
    """BadArtifact if the tokenizer is not the file of the golden texts, even though it encodes them in the same way."""
    path = artifact.path(artifact.manifest.text.tokenizer)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if expected and found != expected:
        raise BadArtifact(f"{path}: found sha256 {found}, expected {expected} as in {GOLDEN_TEXTS}: export again")


def _check_settings(artifact: Artifact, expected: TextInput) -> None:
    """BadArtifact if the text settings of the manifest are not those with which the golden texts were made."""
    settings = artifact.manifest.text
    for field in TextInput.DESCRIPTOR.fields:
        found, wanted = (_value(message, field.name) for message in (settings, expected))
        if found != wanted:
            raise BadArtifact(
                f"{artifact.directory}: found {found!r} for text.{field.name} in the manifest, expected {wanted!r} "
                f"as in {GOLDEN_TEXTS}: export again"
            )


def _value(message: TextInput, name: str) -> object:
    """The value of a field as plain Python; None if it is not set."""
    if name not in {field.name for field, _ in message.ListFields()}:
        return None
    value = getattr(message, name)
    return dict(value) if name == "prompts" else list(value) if name == "end_ids" else value


def _difference(encoder: TextEncoder, text: GoldenText) -> str:
    """The first difference from the expected tokens and text, in words; empty if there is none."""
    pair = text.pair if text.HasField("pair") else None
    prompt_name = text.prompt_name if text.HasField("prompt_name") else None
    try:
        encoding = encoder.encode_as_is(text.text, pair, prompt_name=prompt_name)
    except InvalidRequest as error:
        return str(error)
    if found := _first_difference("token", encoding.ids, text.input_ids):
        return found
    if encoder.text.token_types and (found := _first_difference("token type", encoding.type_ids, text.token_type_ids)):
        return found
    if not text.HasField("decoded"):
        return ""
    detokenizer = encoder.detokenizer()
    streamed = "".join(map(detokenizer.push, text.input_ids)) + detokenizer.flush()
    for decoded in (encoder.decode(text.input_ids, skip_special_tokens=True), streamed):
        if decoded != text.decoded:
            return f"found {decoded[:SHOWN]!r} when decoded, expected {text.decoded[:SHOWN]!r}"
    return ""


def _first_difference(what: str, found: Sequence[int], expected: Sequence[int]) -> str:
    for position, (one, other) in enumerate(zip(found, expected, strict=False)):
        if one != other:
            return f"found {what} {one} at position {position}, expected {other}"
    return "" if len(found) == len(expected) else f"found {len(found)} {what}s, expected {len(expected)}"
