"""Embeddings of texts. The graph pools; the scaling to length 1 is here because a request can turn it off."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from server.admission.queue import RequestContext
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import TextItem
from server.errors import InvalidRequest
from server.text.encode import AsyncEncoder
from server.text.tokenizer import TextEncoder, TokenUsage

MIN_LENGTH = 1e-12  # as in PyTorch's `normalize`


@dataclass(frozen=True)
class Embeddings:
    vectors: NDArray[np.float32]  # (n, d)
    usages: list[TokenUsage]


class Embed:
    """Computes one vector for each text."""

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
        context: RequestContext,
        field: str = "texts",
    ) -> Embeddings:
        """Vectors of the model's width, or their first `dimensions`.

        `normalize` scales them to length 1, or not; None does what the model's manifest says.

        `prompt_name` selects the model's prompt for all texts: None its default prompt, an empty name no prompt.
        The first dimensions are only meaningful by themselves in models that are trained for it (Matryoshka).
        """
        width = self._width(dimensions)
        async with self._batcher.reserve(len(texts), context, field=field) as reservation:
            tokens = await self._encode(texts, prompt_name=prompt_name, truncate=truncate, field=field)
            rows = [
                TextItem(
                    input_ids=each.input_ids,
                    token_type_ids=each.token_type_ids,
                    position_ids=each.position_ids,
                    outputs=("embedding",),
                )
                for each in tokens
            ]
            answers = await self._batcher.run(rows, reservation)
        vectors = np.array([answer["embedding"][:width] for answer in answers], np.float32).reshape(len(rows), width)
        scaled = self.normalise if normalize is None else normalize
        return Embeddings(normalised(vectors) if scaled else vectors, [each.usage for each in tokens])

    def _width(self, dimensions: int | None) -> int:
        if dimensions is None:
            return self.width
        if not 1 <= dimensions <= self.width:
            raise InvalidRequest("dimensions", str(dimensions), f"1 to {self.width}")
        return dimensions


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale each of the vectors (n, d) to length 1."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, MIN_LENGTH), np.float32)
