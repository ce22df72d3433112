"""Classes of images, given as the bytes of files."""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from PIL import Image

from server.admission import Call
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.rows import ImageRow
from server.errors import InvalidRequest
from server.image_files import MAX_PIXELS, open_image
from server.images import ImageDecoder
from server.room import Room
from server.tasks.classes import Class, check_top_k, rank, scores_of

PIXELS_OF_A_REQUEST = 20 * MAX_PIXELS  # together: some ten seconds of decoding
PIXELS_AT_ONCE = 4 * MAX_PIXELS  # being decoded for one model: 4 bytes each, twice that while they are turned


class ClassifyImage:
    """What an image shows, by the model's own labels."""

    def __init__(self, artifact: Artifact, batcher: Batcher, decoder: ImageDecoder, prepare: Executor) -> None:
        self.labels = tuple(artifact.manifest.labels)
        self.function = artifact.manifest.function_to_apply or "softmax"
        self._batcher, self._decoder, self._prepare = batcher, decoder, prepare
        self._room = Room(PIXELS_AT_ONCE)

    async def __call__(
        self,
        images: Sequence[bytes],
        *,
        top_k: int = 5,
        function_to_apply: str = "default",
        call: Call,
        field: str = "images",
    ) -> list[list[Class]]:
        """For each image its `top_k` classes, the likeliest first; `function_to_apply` makes scores of logits."""
        most, scores = check_top_k(top_k), scores_of(function_to_apply, self.function)
        async with self._batcher.place(len(images), call, field=field) as place:
            rows = await self._rows(images, field)
            answers = await self._batcher.run(rows, place)
        return [rank(scores(answer["logits"]), self.labels, top_k=most) for answer in answers]

    async def _rows(self, images: Sequence[bytes], field: str) -> list[ImageRow]:
        """All headers are judged before the first image is decoded; then several threads decode."""
        in_pool = partial(asyncio.get_running_loop().run_in_executor, self._prepare)
        pictures = await in_pool(_opened, images, field)

        async def decoded(number: int, picture: Image.Image) -> ImageRow:
            async with self._room.taken(math.prod(picture.size)):
                pixels = await in_pool(self._decoder.pixels, picture, f"{field}[{number}]")
            return ImageRow(pixel_values=pixels, outputs=("logits",))

        tasks = [asyncio.ensure_future(decoded(number, picture)) for number, picture in enumerate(pictures)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one failed, nobody waits for the others
                task.cancel()


def _opened(images: Sequence[bytes], field: str) -> list[Image.Image]:
    pictures = [open_image(image, f"{field}[{number}]") for number, image in enumerate(images)]
    pixels = sum(math.prod(picture.size) for picture in pictures)
    if pixels > PIXELS_OF_A_REQUEST:
        raise InvalidRequest(field, f"{pixels} pixels together", f"at most {PIXELS_OF_A_REQUEST} in a request")
    return pictures
