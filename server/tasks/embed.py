"""Texts as vectors. Pooling, and normalisation where the checkpoint has it, are in the graph."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from server.admission import Call
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.rows import TextRow
from server.tasks.text import TextEncoder


class Embed:
    """One vector for each text."""

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, prepare: Executor) -> None:
        self.width = artifact.manifest.embedding_width
        self._batcher, self._encoder, self._prepare = batcher, encoder, prepare

    async def __call__(self, texts: Sequence[str], *, call: Call, field: str = "texts") -> NDArray[np.float32]:
        """(n, d), FP32."""
        with self._batcher.under_way.one():
            rows = await asyncio.get_running_loop().run_in_executor(self._prepare, self._rows, texts, field)
            answers = await self._batcher.run(rows, call, field=field)
        return np.array([answer["embedding"] for answer in answers], np.float32).reshape(len(rows), self.width)

    def _rows(self, texts: Sequence[str], field: str) -> list[TextRow]:
        return [
            TextRow(input_ids=tokens.input_ids, token_type_ids=tokens.token_type_ids, outputs=("embedding",))
            for tokens in self._encoder.encode(texts, field=field)
        ]
