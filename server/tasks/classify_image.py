"""Classification of images, which are given as the bytes of image files."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from server.admission.queue import RequestContext
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import ImageItem
from server.errors import InvalidRequest
from server.images.decode_pool import DecodePool
from server.images.file import Header
from server.images.preprocess import ImageDecoder, Pixels
from server.tasks.classification import Class, check_classes, ranked, score_function

LARGEST_IMAGES = 20  # of the largest size in a request, or more smaller ones: about ten seconds of decoding
# The memory to read a header: Pillow may fill the frame of a GIF or unpack the texts of a PNG.
HEADER_BYTES = 200_000_000
SMALL_DECODING_BYTES = 4_000_000  # of an image that takes about a millisecond, which is decoded with its header


class ClassifyImage:
    """Classifies images by the model's own labels."""

    def __init__(
        self, artifact: Artifact, batcher: Batcher, decoder: ImageDecoder, *, pool: DecodePool, threads: Executor
    ) -> None:
        self.labels = tuple(artifact.manifest.labels)
        self.function = artifact.manifest.function_to_apply or "softmax"
        self.max_pixels = decoder.max_pixels  # of one image
        self._batcher, self._decoder, self._pool, self._threads = batcher, decoder, pool, threads

    async def __call__(
        self,
        images: Sequence[bytes],
        *,
        top_k: int = 5,
        function_to_apply: str = "default",
        context: RequestContext,
        field: str = "images",
    ) -> list[list[Class]]:
        """The `top_k` classes of each image, most likely first. `function_to_apply` turns logits into scores."""
        count = check_classes(top_k, self.labels, inputs=len(images))
        scores = score_function(function_to_apply, self.function)
        async with self._batcher.reserve(len(images), context, field=field) as reservation:
            items = await self._items(images, field)
            answers = await self._batcher.run(items, reservation)
            logits = [answer["logits"] for answer in answers]
            return await ranked(logits, scores, self.labels, top_k=count, threads=self._threads)

    async def _items(self, images: Sequence[bytes], field: str) -> list[ImageItem]:
        """Check the headers of all images, then decode the images in several threads."""
        headers, only = await self._pool.run(partial(self._begin, images, field), decoding_bytes=HEADER_BYTES)
        if only is not None:
            return [ImageItem(pixel_values=only, outputs=("logits",))]

        async def decoded(number: int, file: bytes, header: Header) -> ImageItem:
            work = partial(self._decoder.decode, file, f"{field}[{number}]")
            pixels = await self._pool.run(work, decoding_bytes=header.decoding_bytes)
            return ImageItem(pixel_values=pixels, outputs=("logits",))

        pairs = enumerate(zip(images, headers, strict=True))
        tasks = [asyncio.ensure_future(decoded(number, file, header)) for number, (file, header) in pairs]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # if one failed, the others are not needed
                task.cancel()

    def _begin(self, images: Sequence[bytes], field: str) -> tuple[list[Header], Pixels | None]:
        """The headers of all images, and the pixels if there is but one small image."""
        headers = self._headers(images, field)
        small = len(images) == 1 and headers[0].decoding_bytes <= SMALL_DECODING_BYTES
        return headers, self._decoder.decode(images[0], f"{field}[0]") if small else None

    def _headers(self, images: Sequence[bytes], field: str) -> list[Header]:
        headers: list[Header] = []
        pixels, max_pixels = 0, LARGEST_IMAGES * self.max_pixels
        for number, image in enumerate(images):
            headers.append(self._decoder.header(image, f"{field}[{number}]"))
            pixels += headers[-1].pixels
            if pixels > max_pixels:
                found = f"{pixels} pixels in the first {number + 1}"
                raise InvalidRequest(field, found, f"at most {max_pixels} in a request")
        return headers
