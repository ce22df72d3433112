"""The most likely tokens for each mask of a text, as the Hugging Face fill-mask pipeline returns them."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from server.admission.queue import RequestContext
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import Keep, Outputs, TextItem, everything
from server.concurrency.offload import offload_chunked
from server.errors import BadArtifact, InvalidRequest
from server.tasks.classification import check_top_k
from server.text.encode import AsyncEncoder
from server.text.tokenizer import EncodedText, TextEncoder, TokenUsage

TOP_OUTPUTS = ("top_scores", "top_ids", "logsumexp")  # the graph ranks the tokens itself
ALL_OUTPUTS = ("logits", "logsumexp")
MAX_SEQUENCE_TOKENS = 1 << 23  # in all filled-in texts of a response: 40 MB, and a few seconds to decode
MAX_CANDIDATES = 1 << 18  # in a response: a few seconds to build, even for short texts

CHUNK_TOKENS = 1 << 18  # of filled-in texts that a thread decodes at once: a fifth of a second
TOKENS_PER_CANDIDATE = 16  # the cost of building a candidate, in tokens, in addition to those of its text


@dataclass(frozen=True)
class Candidate:
    """A token for a mask. `score` is its probability over the whole vocabulary."""

    score: float
    token_id: int
    token: str
    sequence: str  # the text with this token in place of the mask; other masks stay


@dataclass(frozen=True)
class FilledMask:
    position: int  # of the mask, in tokens
    candidates: list[Candidate]


@dataclass(frozen=True)
class FilledText:
    masks: list[FilledMask]  # from left to right
    usage: TokenUsage


class FillMask:
    """Fills the masks of texts, each mask independently."""

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, threads: Executor) -> None:
        if encoder.mask_id is None:
            raise BadArtifact(f"{artifact.directory}: found no mask token in the manifest, expected one for fill-mask")
        self.vocabulary = artifact.manifest.text.vocabulary
        self.mask_token = encoder.token(encoder.mask_id)
        self._mask_id = encoder.mask_id
        self._max_top_ids = max_top_ids(artifact)
        self._batcher, self._encoder, self._threads = batcher, encoder, threads
        self._encode = AsyncEncoder(encoder, threads)

    async def __call__(
        self,
        texts: Sequence[str],
        *,
        top_k: int = 5,
        targets: Sequence[str] = (),
        truncate: bool = False,
        context: RequestContext,
        field: str = "texts",
    ) -> list[FilledText]:
        """For each text its masks, each with its `top_k` candidates (out of `targets`, if given), most likely first.

        With targets, or with more candidates than the graph ranks itself, all logits are copied from the device.
        """
        count = min(check_top_k(top_k), self.vocabulary)
        async with self._batcher.reserve(len(texts), context, field=field) as reservation:
            target_ids = await self._target_ids(targets) if targets else None
            count = count if target_ids is None else min(count, len(target_ids))
            outputs = TOP_OUTPUTS if target_ids is None and count <= self._max_top_ids else ALL_OUTPUTS
            tokens = await self._encode(texts, truncate=truncate, field=field)
            keep = everything if outputs is TOP_OUTPUTS else partial(rank, top_k=count, target_ids=target_ids)
            items = [self._item(each, outputs, keep, f"{field}[{number}]") for number, each in enumerate(tokens)]
            check_size(items, count)
            answers = await self._batcher.run(items, reservation)
            masks = await self._fill(items, answers, count)
        return [FilledText(found, each.usage) for found, each in zip(masks, tokens, strict=True)]

    async def _target_ids(self, targets: Sequence[str]) -> NDArray[np.int64]:
        """The ids (targets,), looked up in a thread.

        Raises InvalidRequest for a word that is not one token. The pipeline would warn and use its first token.
        """
        if len(targets) > self.vocabulary:
            raise InvalidRequest("targets", f"{len(targets)} words", f"at most {self.vocabulary}, all that there are")

        def find() -> NDArray[np.int64]:
            ids = [self._encoder.token_id(word, field=f"targets[{number}]") for number, word in enumerate(targets)]
            return np.array(list(dict.fromkeys(ids)), np.int64)

        return await asyncio.get_running_loop().run_in_executor(self._threads, find)

    def _item(self, tokens: EncodedText, outputs: tuple[str, ...], keep: Keep, field: str) -> TextItem:
        masks = np.flatnonzero(tokens.input_ids == self._mask_id)
        if not len(masks):
            where = " in the rest of it" if tokens.truncated else ""
            raise InvalidRequest(field, f"no {self.mask_token}{where}", f"at least one {self.mask_token}")
        return TextItem(
            input_ids=tokens.input_ids,
            token_type_ids=tokens.token_type_ids,
            position_ids=tokens.position_ids,
            selected=masks,
            outputs=outputs,
            keep=keep,
        )

    async def _fill(self, items: Sequence[TextItem], answers: Sequence[Outputs], top_k: int) -> list[list[FilledMask]]:
        def fill(chunk: slice) -> list[list[FilledMask]]:
            pairs = zip(items[chunk], answers[chunk], strict=True)
            return [self._masks(item, *best(answer, top_k)) for item, answer in pairs]

        sizes = [top_k * item.logit_positions * (item.tokens + TOKENS_PER_CANDIDATE) for item in items]
        return await offload_chunked(self._threads, fill, sizes, max_size=CHUNK_TOKENS)

    def _masks(self, item: TextItem, scores: NDArray[np.float32], ids: NDArray[np.int64]) -> list[FilledMask]:
        """The masks of one text, from their scores and ids (masks, k)."""
        input_ids, positions = item.input_ids.tolist(), item.selected.tolist()
        return [
            FilledMask(position, self._candidates(input_ids, position, *ranked, alone=len(positions) == 1))
            for position, *ranked in zip(positions, scores.tolist(), ids.tolist(), strict=True)
        ]

    def _candidates(
        self, input_ids: list[int], position: int, scores: Sequence[float], tokens: Sequence[int], *, alone: bool
    ) -> list[Candidate]:
        """The candidates for one mask. Special tokens are removed from their texts, unless other masks are left."""
        before, after = self._unpadded(input_ids[:position]), self._unpadded(input_ids[position + 1 :])
        decode, decode_token, padding = self._encoder.decode, self._encoder.decode_token, self._encoder.pad_id
        return [
            Candidate(
                score,
                token,
                decode_token(token),
                decode(before + [token] * (token != padding) + after, skip_special_tokens=alone),
            )
            for score, token in zip(scores, tokens, strict=True)
        ]

    def _unpadded(self, ids: list[int]) -> list[int]:
        padding = self._encoder.pad_id
        return [token for token in ids if token != padding]


def check_size(items: Sequence[TextItem], top_k: int) -> None:
    """Raise InvalidRequest for a response that would take minutes to build, for example with a large `top_k`."""
    masks, tokens = (
        sum(item.logit_positions for item in items),
        top_k * sum(item.logit_positions * item.tokens for item in items),
    )
    found = f"{top_k} for each of {masks} masks, {tokens} tokens of filled-in texts"
    if tokens > MAX_SEQUENCE_TOKENS:
        raise InvalidRequest("top_k", found, f"at most {MAX_SEQUENCE_TOKENS} tokens in an answer")
    if top_k * masks > MAX_CANDIDATES:
        raise InvalidRequest("top_k", found, f"at most {MAX_CANDIDATES} candidates in an answer")


def max_top_ids(artifact: Artifact) -> int:
    """The smallest number of top tokens that a graph of the model outputs."""
    return min(
        int(tensor.shape[-1])
        for graph in artifact.manifest.graphs
        for tensor in graph.outputs
        if tensor.name == "top_ids"
    )


def rank(outputs: Outputs, *, top_k: int, target_ids: NDArray[np.int64] | None) -> Outputs:
    """Rank logits (masks, v) like the graph: the `top_k` most likely tokens, only of the targets if there are any."""
    logits = outputs["logits"] if target_ids is None else outputs["logits"][:, target_ids]  # (masks, targets)
    if top_k < logits.shape[1]:
        order = np.sort(np.argpartition(-logits, top_k - 1, axis=-1)[:, :top_k], axis=-1)
    else:
        order = np.tile(np.arange(logits.shape[1]), (len(logits), 1))
    scores = np.take_along_axis(logits, order, axis=-1)
    ranks = np.argsort(-scores, axis=-1, kind="stable")  # equally likely tokens by id
    ids = np.take_along_axis(order, ranks, axis=-1)
    return {
        "top_scores": np.take_along_axis(scores, ranks, axis=-1),
        "top_ids": ids if target_ids is None else target_ids[ids],
        "logsumexp": outputs["logsumexp"].copy(),
    }


def best(ranked: Outputs, top_k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The most likely tokens: their probabilities over the whole vocabulary, and their ids, (masks, k) each."""
    return np.exp(ranked["top_scores"][:, :top_k] - ranked["logsumexp"][:, None]), ranked["top_ids"][:, :top_k]
