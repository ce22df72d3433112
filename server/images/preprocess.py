"""Turns a picture into the pixel values that a model expects, as `transformers` does.

export/inputs/images/steps.py has the same steps with the functions of transformers; the golden images compare the two.
"""

from dataclasses import replace
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from protos.artifact import MAX_RESIZED_PIXELS
from protos.manifest_pb2 import ImageInput, Size
from server.errors import BadArtifact, InvalidRequest
from server.images.file import Header, Reduction, decode, full_size, on_white, read_header
from server.images.limits import MAX_PIXELS

BYTES_PER_RESIZED_PIXEL = 10  # 4 in Pillow, and 3 in each of two copies
CHANNELS = 3
BYTES_PER_FP32_PIXEL = 36  # three copies of three colours
# JPEG files of this many pixels take as long to decode as a model to run, and may be decoded at a smaller scale.
REDUCED_PIXELS = 4_000_000
# Resampling that gives nearly the same result from the smaller scale. A photograph of 12 megapixels differs by 1 to 2
# grey levels at most (root mean square 0.3) if its scale leaves 4 times the size of the model, by 5 if it leaves twice
# the size, and by 10 if it leaves the size itself; hard edges between saturated colours, by 6 with 4 times the size
# (26 November 2026). Box differs by 26.
REDUCIBLE = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
Pixels = NDArray[np.float32]


class ImageDecoder:
    """The preprocessing of one model: RGB, resize, centre crop, rescale, normalise, pad. Threads may share it."""

    def __init__(self, settings: ImageInput, *, max_pixels: int = MAX_PIXELS, reducing_gap: float = 0) -> None:
        """BadArtifact if the steps in the manifest cannot be carried out. `max_pixels` is the limit of an image.

        `reducing_gap` is that of Pillow's `Image.thumbnail`: a large JPEG is decoded at the smallest scale that
        leaves so many times the size after the resize; 0: always in full.
        """
        check_steps(settings)
        self._settings, self.max_pixels, self._reducing_gap = settings, max_pixels, reducing_gap
        self._resample = Image.Resampling[(settings.resample or "bilinear").upper()]
        self._mean = np.array(settings.mean, np.float32).reshape(-1, 1, 1)  # (3, 1, 1)
        self._deviation = np.array(settings.deviation, np.float32).reshape(-1, 1, 1)
        self._reducible = bool(reducing_gap) and settings.HasField("resize") and self._resample in REDUCIBLE

    def header(self, file: bytes, field: str = "image") -> Header:
        """The header of a file, with the memory for decoding and resizing. InvalidRequest if either is impossible."""
        header = read_header(file, field, max_pixels=self.max_pixels, reduction=self._reduction(field))
        settings = self._settings
        preprocessing_bytes = BYTES_PER_FP32_PIXEL * settings.height * settings.width
        if settings.HasField("resize"):
            width, height = _target(header.size, settings.resize, field)
            # Pillow resizes one side after the other; EXIF may swap the sides.
            intermediate = max(width * header.decoded[1], height * header.decoded[0])
            preprocessing_bytes += BYTES_PER_RESIZED_PIXEL * (width * height + intermediate)
        return replace(header, decoding_bytes=header.decoding_bytes + preprocessing_bytes)

    def decode(self, file: bytes, field: str = "image") -> Pixels:
        """Pixel values (3, h, w), FP32. InvalidRequest if the file is not an image, or has a wrong size."""
        picture = decode(file, field, max_pixels=self.max_pixels, reduction=self._reduction(field))
        image, settings = picture.image, self._settings
        if settings.white_for_transparent:
            image = on_white(image)
        if settings.HasField("resize"):
            image = image.resize(_target(picture.size, settings.resize, field), self._resample, picture.box)
        values = np.asarray(image)  # (h, w, 3)
        if settings.HasField("crop"):
            values = _crop(values, settings)
        result = self._rescaled(values)  # (3, h, w)
        if settings.HasField("pad"):
            result = _pad(result, settings.pad)
        if result.shape[1:] != (settings.height, settings.width):
            found = f"{result.shape[2]} x {result.shape[1]} pixels"
            raise InvalidRequest(
                field, found, f"{settings.width} x {settings.height}: this model does not {self._missing}"
            )
        return np.ascontiguousarray(result)

    def _rescaled(self, values: NDArray[np.uint8]) -> Pixels:
        """Rescale and normalise grey levels (h, w, 3) to pixel values (3, h, w)."""
        settings = self._settings
        result: Pixels = np.ascontiguousarray(values.transpose(2, 0, 1)).astype(np.float32)
        if settings.HasField("rescale"):
            result *= np.float32(settings.rescale)
        if settings.mean:
            result -= self._mean
            result /= self._deviation
        return result

    def _reduction(self, field: str) -> Reduction:
        """How many times smaller a JPEG of a size may be decoded. It can be on its side."""
        resize = self._settings.resize

        def allowed(size: tuple[int, int]) -> float:
            if size[0] * size[1] < REDUCED_PIXELS:
                return 1
            target = _target(size, resize, field)
            long, short = max(target), max(target) if resize.HasField("height") else min(target)
            return min(max(size) / long, min(size) / short) / self._reducing_gap

        return allowed if self._reducible else full_size

    @property
    def _missing(self) -> str:
        """The missing step that would bring images to the size of the model."""
        return "crop to it" if self._settings.HasField("resize") else "resize"


def check_steps(image: ImageInput) -> None:
    """BadArtifact if a step in the manifest cannot be carried out, or does not fit the image size of the model."""
    if not 0 < image.height * image.width <= MAX_RESIZED_PIXELS:
        raise BadArtifact(f"image: found {image.width} x {image.height} pixels, expected 1 to {MAX_RESIZED_PIXELS}")
    if (image.resample or "bilinear").upper() not in Image.Resampling.__members__:
        names = ", ".join(name.lower() for name in Image.Resampling.__members__)
        raise BadArtifact(f"image.resample: found {image.resample!r}, expected one of {names}")
    if image.HasField("resize"):
        _check_size("image.resize", image.resize, edges=True)
    for step in ("crop", "pad"):
        if image.HasField(step):
            _check_size(f"image.{step}", getattr(image, step), edges=False)
    if len(image.mean) != len(image.deviation) or len(image.mean) not in (0, CHANNELS):
        found = f"{len(image.mean)} and {len(image.deviation)}"
        raise BadArtifact(
            f"image.mean and image.deviation: found {found} numbers, expected {CHANNELS} of each, or none"
        )
    if not all(image.deviation):
        raise BadArtifact(f"image.deviation: found {list(image.deviation)}, expected no zero")


def _check_size(field: str, size: Size, *, edges: bool) -> None:
    """BadArtifact if a step has neither height and width nor, with `edges`, a shortest edge."""
    sides = size.height > 0 and size.width > 0 and size.height * size.width <= MAX_RESIZED_PIXELS
    if size.HasField("shortest_edge"):
        known = edges and size.shortest_edge > 0 and not size.HasField("height") and not size.HasField("width")
        known = known and (not size.HasField("longest_edge") or size.longest_edge > 0)
    else:
        known = sides and not size.HasField("longest_edge")
    if not known:
        found = {name.name: pixels for name, pixels in size.ListFields()}
        expected = f"height and width of at most {MAX_RESIZED_PIXELS} pixels{', or shortest_edge' if edges else ''}"
        raise BadArtifact(f"{field}: found {found}, expected {expected}")


def _target(found: tuple[int, int], size: Size, field: str) -> tuple[int, int]:
    """Width and height after resizing. InvalidRequest for a narrow image that would become too large, or empty."""
    if not size.HasField("shortest_edge"):
        return size.width, size.height
    short, long = sorted(found)
    edges = _bounded_edges(short, long, size) if size.HasField("longest_edge") else _edges(short, long, size)
    if edges[0] * edges[1] > MAX_RESIZED_PIXELS or not edges[0]:
        raise InvalidRequest(field, f"{found[0]} x {found[1]} pixels", "sides that differ less")
    return edges if found[0] <= found[1] else edges[::-1]


def _edges(short: int, long: int, size: Size) -> tuple[int, int]:
    """The shortest edge as in the manifest, with the same aspect ratio."""
    return size.shortest_edge, int(size.shortest_edge * long / short)


def _bounded_edges(short: int, long: int, size: Size) -> tuple[int, int]:
    """As `_edges`, but smaller if the longest edge would exceed that of the manifest."""
    wanted: float = size.shortest_edge
    edge = size.shortest_edge
    if long / short * edge > size.longest_edge:
        wanted = size.longest_edge * short / long
        edge = round(wanted)
    return (short, long) if edge == short else (edge, int(wanted * long / short))


def _crop(values: NDArray[np.uint8], settings: ImageInput) -> NDArray[np.uint8]:
    """The centre of (h, w, 3), with black added around an image that is too small."""
    height, width = settings.crop.height, settings.crop.width
    missing = [max(0, wanted - found) for wanted, found in zip((height, width), values.shape[:2], strict=True)]
    if any(missing):
        padding = [(ceil(pixels / 2), pixels - ceil(pixels / 2)) for pixels in missing]
        values = np.pad(values, [*padding, (0, 0)])
    excess = values.shape[0] - height, values.shape[1] - width
    top, left = (round(pixels / 2) if settings.crop_half_to_even else pixels // 2 for pixels in excess)
    return values[top : top + height, left : left + width]


def _pad(values: Pixels, size: Size) -> Pixels:
    """(3, h, w) padded with zeros below and on the right to a size."""
    missing = size.height - values.shape[1], size.width - values.shape[2]
    return np.pad(values, ((0, 0), *((0, max(0, pixels)) for pixels in missing)))
