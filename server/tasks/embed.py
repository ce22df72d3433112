"""Embeddings of texts. The graph pools; vectors are scaled to length 1 here, because a request can turn this off."""

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

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, threads: Executor) -> None:
        self.width = artifact.manifest.embedding_width
        self.normalise = artifact.manifest.normalise
        self._batcher, self._encode = batcher, AsyncEncoder(encoder, threads)

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
        """A vector for each text: (n, width), or (n, dimensions) with the first `dimensions` of each vector.

        `normalize` says whether to scale the vectors to length 1; None: as the manifest says. `prompt_name` selects a
        prompt of the model for all texts; None: its default prompt, an empty name: no prompt. The first dimensions are
        only meaningful by themselves in models that are trained for it (Matryoshka).
        """
        width = self._width(dimensions)
        async with self._batcher.reserve(len(texts), context, field=field) as reservation:
            tokens = await self._encode(texts, prompt_name=prompt_name, truncate=truncate, field=field)
            items = [
                TextItem(
                    input_ids=each.input_ids,
                    token_type_ids=each.token_type_ids,
                    position_ids=each.position_ids,
                    outputs=("embedding",),
                )
                for each in tokens
            ]
            answers = await self._batcher.run(items, reservation)
        vectors = np.array([answer["embedding"][:width] for answer in answers], np.float32).reshape(len(items), width)
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
