"""Classes of images, given as the bytes of files."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from server.admission import Call
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.rows import ImageRow
from server.images import ImageDecoder
from server.tasks.classes import Class, check_top_k, rank


class ClassifyImage:
    """What an image shows, by the model's own labels."""

    def __init__(self, artifact: Artifact, batcher: Batcher, decoder: ImageDecoder, prepare: Executor) -> None:
        self.labels = tuple(artifact.manifest.labels)
        self.function = artifact.manifest.function_to_apply or "softmax"
        self._batcher, self._decoder, self._prepare = batcher, decoder, prepare

    async def __call__(
        self, images: Sequence[bytes], *, top_k: int = 5, call: Call, field: str = "images"
    ) -> list[list[Class]]:
        """For each image its `top_k` classes, the likeliest first."""
        most = check_top_k(top_k)
        with self._batcher.under_way.one():
            rows = await asyncio.gather(*(self._row(image, f"{field}[{n}]") for n, image in enumerate(images)))
            answers = await self._batcher.run(rows, call, field=field)
        return [rank(answer["logits"], self.labels, function=self.function, top_k=most) for answer in answers]

    async def _row(self, image: bytes, field: str) -> ImageRow:
        """One image each, so that several threads decode the images of a request."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._prepare, self._decoder.decode, image, field)
        return ImageRow(pixel_values=pixels, outputs=("logits",))
