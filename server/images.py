"""From a picture to pixels as a model wants them, as `transformers` makes them."""

from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protos.manifest_pb2 import ImageInput, Size
from server.errors import BadArtifact, InvalidRequest
from server.image_files import Header, decode, read_header

MAX_RESIZED_PIXELS = 16_000_000  # before a crop
BYTES_PER_RESIZED_PIXEL = 10  # Pillow's 4, and two copies without the fourth
BYTES_PER_PIXEL_IN_FP32 = 36  # three copies of three colours
Pixels = NDArray[np.float32]


class ImageDecoder:
    """The preprocessing of one model: RGB, resize, centre crop, rescale, normalise. Threads may share it."""

    def __init__(self, image: ImageInput) -> None:
        self._image = image
        self._resample = Image.Resampling[(image.resample or "bilinear").upper()]
        self._mean = np.array(image.mean, np.float32).reshape(-1, 1, 1)  # (3, 1, 1)
        self._deviation = np.array(image.deviation, np.float32).reshape(-1, 1, 1)
        if image.HasField("resize") and image.HasField("crop") and image.crop.HasField("shortest_edge"):
            raise BadArtifact("image.crop: found a shortest edge, expected height and width")

    def header(self, file: bytes, field: str = "image") -> Header:
        """What decoding this file takes, resizing included. InvalidRequest if it is none, or cannot be resized."""
        header, image = read_header(file, field), self._image
        more = BYTES_PER_PIXEL_IN_FP32 * image.height * image.width
        if image.HasField("resize"):
            width, height = _target(header.size, image.resize, field)
            # One side after the other: which one first depends on whether EXIF turns the picture.
            between = max(width * header.height, height * header.width)
            more += BYTES_PER_RESIZED_PIXEL * (width * height + between)
        return replace(header, decoding_bytes=header.decoding_bytes + more)

    def decode(self, file: bytes, field: str = "image") -> Pixels:
        """(3, h, w), FP32, in the order in which a model takes it. InvalidRequest if the bytes are no such image."""
        picture, image = decode(file, field), self._image
        if image.HasField("resize"):
            picture = picture.resize(_target(picture.size, image.resize, field), self._resample)
        values = np.asarray(picture)  # (h, w, 3)
        if image.HasField("crop"):
            values = _crop(values, image.crop.height, image.crop.width)
        if values.shape[:2] != (image.height, image.width):
            found = f"{values.shape[1]} x {values.shape[0]} pixels"
            raise InvalidRequest(field, found, f"{image.width} x {image.height}: this model does not resize")
        result = values.transpose(2, 0, 1).astype(np.float32)  # (3, h, w)
        if image.HasField("rescale"):
            result *= np.float32(image.rescale)
        if image.mean:
            result = (result - self._mean) / self._deviation
        return np.ascontiguousarray(result)


def _target(found: tuple[int, int], size: Size, field: str) -> tuple[int, int]:
    """Width and height to resize to. Of a line of pixels, a shortest edge would make gigabytes."""
    if not size.HasField("shortest_edge"):
        return size.width, size.height
    short, long = sorted(found)
    edges = size.shortest_edge, int(size.shortest_edge * long / short)
    if edges[0] * edges[1] > MAX_RESIZED_PIXELS:
        raise InvalidRequest(field, f"{found[0]} x {found[1]} pixels", "sides that differ less")
    return edges if found[0] <= found[1] else edges[::-1]


def _crop(values: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle of (h, w, 3); black is added around what is too small."""
    missing = [max(0, wanted - found) for wanted, found in zip((height, width), values.shape[:2], strict=True)]
    if any(missing):
        around = [(ceil(pixels / 2), pixels - ceil(pixels / 2)) for pixels in missing]
        values = np.pad(values, [*around, (0, 0)])
    top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
    return values[top : top + height, left : left + width]
