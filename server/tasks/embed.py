"""Texts as vectors. Pooling is in the graph; scaling to length 1 is here, for a request may want it or not."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.admission.queue import RequestContext
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import TextRow
from server.errors import InvalidRequest
from server.text.encode import AsyncEncoder
from server.text.tokenizer import TextEncoder, TokenUsage

SHORTEST = 1e-12  # as PyTorch's `normalize` has it


@dataclass(frozen=True)
class Embeddings:
    vectors: NDArray[np.float32]  # (n, d)
    usages: list[TokenUsage]


class Embed:
    """One vector for each text."""

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, prepare: Executor) -> None:
        self.width = artifact.manifest.embedding_width
        self.normalise = artifact.manifest.normalise
        self._batcher, self._encode = batcher, AsyncEncoder(encoder, prepare)

    async def __call__(
        self,
        texts: Sequence[str],
        *,
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
        call: RequestContext,
        field: str = "texts",
    ) -> Embeddings:
        """Vectors of the model's width, or of their first `dimensions`; of length 1 if the model, or the request, says.

        `prompt_name` names the model's prompt for all texts: None its default prompt, empty no prompt.
        Only of a model that was trained for it (Matryoshka) do the first dimensions say anything by themselves.
        """
        width = self._checked(dimensions)
        async with self._batcher.place(len(texts), call, field=field) as place:
            tokens = await self._encode(texts, prompt_name=prompt_name, truncate=truncate, field=field)
            rows = [
                TextRow(
                    input_ids=each.input_ids,
                    token_type_ids=each.token_type_ids,
                    position_ids=each.position_ids,
                    outputs=("embedding",),
                )
                for each in tokens
            ]
            answers = await self._batcher.run(rows, place)
        vectors = np.array([answer["embedding"][:width] for answer in answers], np.float32).reshape(len(rows), width)
        scaled = self.normalise if normalize is None else normalize
        return Embeddings(normalised(vectors) if scaled else vectors, [each.usage for each in tokens])

    def _checked(self, dimensions: int | None) -> int:
        if dimensions is None:
            return self.width
        if not 1 <= dimensions <= self.width:
            raise InvalidRequest("dimensions", str(dimensions), f"1 to {self.width}")
        return dimensions


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (n, d), each of length 1."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, SHORTEST), np.float32)
