"""Classes of texts."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from server.admission import Call
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.rows import TextRow
from server.tasks.classes import Class, check_top_k, rank, scores_of
from server.tasks.text import TextEncoder


class ClassifyText:
    """What a text is, by the model's own labels."""

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, prepare: Executor) -> None:
        self.labels = tuple(artifact.manifest.labels)
        self.function = artifact.manifest.function_to_apply or "softmax"
        self._batcher, self._encoder, self._prepare = batcher, encoder, prepare

    async def __call__(
        self, texts: Sequence[str], *, top_k: int | None = None, call: Call, field: str = "texts"
    ) -> list[list[Class]]:
        """For each text its classes, the likeliest first: all of them, or the first `top_k`."""
        scores = scores_of("default", self.function)
        most = len(self.labels) if top_k is None else check_top_k(top_k)
        with self._batcher.under_way.one():
            rows = await asyncio.get_running_loop().run_in_executor(self._prepare, self._rows, texts, field)
            answers = await self._batcher.run(rows, call, field=field)
        return [rank(scores(answer["logits"]), self.labels, top_k=most) for answer in answers]

    def _rows(self, texts: Sequence[str], field: str) -> list[TextRow]:
        return [
            TextRow(input_ids=tokens.input_ids, token_type_ids=tokens.token_type_ids, outputs=("logits",))
            for tokens in self._encoder.encode(texts, field=field)
        ]
