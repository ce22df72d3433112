"""Conversion between the typed service's messages and the tasks' values."""

from collections.abc import Sequence
from dataclasses import asdict

from protos import affinity_pb2 as pb
from server.errors import InvalidRequest
from server.tasks.classification import Class
from server.tasks.embed import Embeddings
from server.tasks.fill_mask import FilledMask, FilledText
from server.tasks.generate import Prompt
from server.tasks.text_stream import TextDelta
from server.text.tokenizer import TokenUsage


def read_prompt(number: int, prompt: pb.Prompt) -> Prompt:
    """The text or the token ids of a prompt."""
    kind = prompt.WhichOneof("prompt")
    if kind is None:
        raise InvalidRequest(f"prompts[{number}]", "neither text nor token_ids", "one of them")
    return prompt.text if kind == "text" else prompt.token_ids.ids


def add_filled_texts(response: pb.FillMaskResponse, texts: Sequence[FilledText]) -> None:
    for text in texts:
        response.results.append(pb.FilledText(masks=map(_filled_mask, text.masks), tokens=_input_tokens(text.usage)))


def add_classifications(
    response: pb.ClassifyResponse, classes: Sequence[Sequence[Class]], usages: Sequence[TokenUsage] = ()
) -> None:
    """`classes` are those of each input; `usages` those of each text, and empty for images."""
    all_tokens = list(map(_input_tokens, usages)) if usages else [None] * len(classes)
    for input_classes, tokens in zip(classes, all_tokens, strict=True):
        messages = [pb.Class(label=label, class_id=class_id, score=score) for label, class_id, score in input_classes]
        response.results.append(pb.Classification(classes=messages, tokens=tokens))


def wants_packed(encoding_format: str) -> bool:
    """Whether a request asks for embeddings as bytes."""
    if encoding_format not in ("", "float", "bytes"):
        raise InvalidRequest("encoding_format", repr(encoding_format), "'float' or 'bytes'")
    return encoding_format == "bytes"


def add_float_embeddings(response: pb.EmbedResponse, embeddings: Embeddings) -> None:
    """Vectors are passed as lists, which protobuf reads six times as fast as arrays."""
    for vector, usage in zip(embeddings.vectors, embeddings.usages, strict=True):
        response.results.append(pb.Embedding(values=vector.tolist(), tokens=_input_tokens(usage)))


def add_packed_embeddings(response: pb.EmbedResponse, embeddings: Embeddings) -> None:
    """Vectors become little-endian bytes, which most machines have in memory already."""
    for vector, usage in zip(embeddings.vectors.astype("<f4", copy=False), embeddings.usages, strict=True):
        response.results.append(pb.Embedding(embedding_bytes=vector.tobytes(), tokens=_input_tokens(usage)))


def add_delta(response: pb.GenerateResponse, delta: TextDelta) -> None:
    """Add the new text of a prompt and, at its end, the reason, the seed and the usage."""
    response.text = delta.text
    response.token_ids.extend(delta.token_ids)
    for token in delta.logprobs:
        top = [pb.TokenLogprob(token=other, logprob=logprob) for other, logprob in token.top]
        response.logprobs.add(logprob=token.logprob, top=top)
    if delta.finish_reason:
        response.finish_reason, response.stop_reason = delta.finish_reason, delta.stop_reason
    if delta.seed is not None:
        response.seed = delta.seed
    if delta.usage is not None:
        response.usage.CopyFrom(pb.Usage(**asdict(delta.usage)))


def _filled_mask(mask: FilledMask) -> pb.FilledMask:
    candidates = [
        pb.Candidate(
            score=candidate.score, token=candidate.token_id, token_str=candidate.token, sequence=candidate.sequence
        )
        for candidate in mask.candidates
    ]
    return pb.FilledMask(position=mask.position, candidates=candidates)


def _input_tokens(usage: TokenUsage) -> pb.InputTokens:
    return pb.InputTokens(used=usage.tokens, truncated=usage.truncated)
