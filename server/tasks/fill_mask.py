"""The likeliest words for each mask of a text, as the Hugging Face fill-mask pipeline gives them."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from server.admission import Call
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.rows import Outputs, TextRow
from server.errors import BadArtifact, InvalidRequest
from server.tasks.classes import check_top_k
from server.tasks.text import TextEncoder

TOP = ("top_scores", "top_ids", "logsumexp")  # what the graph computes of the best words
ALL = ("logits", "logsumexp")


@dataclass(frozen=True)
class Candidate:
    """A word for a mask. `score` is its probability over the whole vocabulary."""

    score: float
    token_id: int
    token: str
    sequence: str  # the text with this word in place of the mask; masks beside it stay


@dataclass(frozen=True)
class FilledMask:
    position: int  # of the mask, in tokens
    candidates: list[Candidate]


class FillMask:
    """Fills the masks of texts, each mask for itself."""

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, prepare: Executor) -> None:
        if encoder.mask_id is None:
            raise BadArtifact(f"{artifact.directory}: found no mask token in the manifest, expected one for fill-mask")
        self.vocabulary = artifact.manifest.text.vocabulary
        self._mask_id = encoder.mask_id
        self._ranked = ranked_in_graph(artifact)
        self._batcher, self._encoder, self._prepare = batcher, encoder, prepare

    async def __call__(
        self, texts: Sequence[str], *, top_k: int = 5, call: Call, field: str = "texts"
    ) -> list[list[FilledMask]]:
        """For each text its masks from left to right, each with the `top_k` likeliest words, the likeliest first.

        More words than the graph ranks by itself cost the transport of all logits.
        """
        most = min(check_top_k(top_k), self.vocabulary)
        in_pool = partial(asyncio.get_running_loop().run_in_executor, self._prepare)
        with self._batcher.under_way.one():
            rows = await in_pool(self._rows, texts, TOP if most <= self._ranked else ALL, field)
            answers = await self._batcher.run(rows, call, field=field)
            return await in_pool(self._filled, rows, answers, most)

    def _rows(self, texts: Sequence[str], outputs: tuple[str, ...], field: str) -> list[TextRow]:
        rows = []
        for number, tokens in enumerate(self._encoder.encode(texts, field=field)):
            masks = np.flatnonzero(tokens.input_ids == self._mask_id)
            if not len(masks):
                mask = self._encoder.token(self._mask_id)
                raise InvalidRequest(f"{field}[{number}]", f"no {mask}", f"at least one {mask}")
            rows.append(
                TextRow(
                    input_ids=tokens.input_ids,
                    token_type_ids=tokens.token_type_ids,
                    selected=masks,
                    outputs=outputs,
                )
            )
        return rows

    def _filled(self, rows: Sequence[TextRow], answers: Sequence[Outputs], top_k: int) -> list[list[FilledMask]]:
        return [self._masks(row, *best(answer, top_k)) for row, answer in zip(rows, answers, strict=True)]

    def _masks(self, row: TextRow, scores: NDArray[np.float32], ids: NDArray[np.int64]) -> list[FilledMask]:
        """The masks of one text; scores and ids (masks, k)."""
        return [
            FilledMask(
                int(position),
                [
                    Candidate(
                        float(score), int(token), self._encoder.decode([int(token)]), self._with(row, position, token)
                    )
                    for score, token in zip(*ranked, strict=True)
                ],
            )
            for position, ranked in zip(row.selected, zip(scores, ids, strict=True), strict=True)
        ]

    def _with(self, row: TextRow, position: np.int64, token: np.int64) -> str:
        """The text with a token in place of one mask. Special tokens go, unless another mask would go with them."""
        ids = row.input_ids.copy()
        ids[position] = token
        return self._encoder.decode(ids[ids != self._encoder.pad_id].tolist(), skip_special_tokens=row.heads == 1)


def ranked_in_graph(artifact: Artifact) -> int:
    """How many of the best words every graph of the model gives without the logits."""
    return min(
        int(tensor.shape[-1])
        for graph in artifact.manifest.graphs
        for tensor in graph.outputs
        if tensor.name == "top_ids"
    )


def best(answer: Outputs, top_k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities and ids (masks, k) of the likeliest words, from what the graph ranked or from all logits."""
    if "top_ids" in answer:
        logits, ids = answer["top_scores"][:, :top_k], answer["top_ids"][:, :top_k]
    else:
        ids = np.argsort(-answer["logits"], axis=-1, kind="stable")[:, :top_k]
        logits = np.take_along_axis(answer["logits"], ids, axis=-1)
    return np.exp(logits - answer["logsumexp"][:, None]), ids
