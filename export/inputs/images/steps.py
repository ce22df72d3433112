"""The manifest's steps of image preprocessing, run with transformers' own functions.

Each export proves on the golden images that the steps give the pixels of the checkpoint's image processor. They also
reproduce timm's evaluation transform: see `timm_layout`. server/images/preprocess.py has the same steps without
transformers; the golden images compare the two.
"""

import io
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from transformers import image_transforms
from transformers.image_utils import ChannelDimension, load_image

from export.errors import ExportError
from protos.artifact import IMAGE_FORMATS
from protos.manifest_pb2 import ImageInput, Size

FIRST = ChannelDimension.FIRST
GREY_LEVELS = 256
Pixels = NDArray[np.float32]


def loaded(file: bytes | Path) -> Image.Image:
    """An image file as transformers' pipelines load it: upright, in RGB. OSError if it is not an image.

    There is one intended difference: of 16-bit greys, the upper eight bits are used, as for colours. Pillow would show
    all but the 256 darkest of 65,536 greys as white.
    """
    stream: IO[bytes] | Path = io.BytesIO(file) if isinstance(file, bytes) else file
    with Image.open(stream, formats=IMAGE_FORMATS) as picture:
        if not picture.mode.startswith("I;16"):
            return load_image(picture)
        greys = np.asarray(ImageOps.exif_transpose(picture))
        return Image.fromarray((greys >> 8).astype(np.uint8)).convert("RGB")


def pixel_values(picture: Image.Image, image: ImageInput) -> Pixels:
    """The model's input for a picture in RGB, (3, h, w). ExportError if the result does not have the model's size."""
    values = np.moveaxis(rgb(picture, image), -1, 0)  # (3, h, w)
    if image.HasField("resize"):
        size = target(values.shape[1], values.shape[2], image.resize)
        resample = Image.Resampling[(image.resample or "bilinear").upper()]
        values = image_transforms.resize(values, size, resample, data_format=FIRST, input_data_format=FIRST)
    if image.HasField("crop"):
        values = cropped(values, image)
    result = rescaled(values, image)
    if image.HasField("pad"):
        missing = image.pad.height - result.shape[1], image.pad.width - result.shape[2]
        result = np.pad(result, ((0, 0), *((0, max(0, pixels)) for pixels in missing)))
    if result.shape[1:] != (image.height, image.width):
        found = f"{result.shape[2]} × {result.shape[1]}"
        raise ExportError(f"an image: found {found} pixels, expected {image.width} × {image.height}")
    return result


def rgb(picture: Image.Image, image: ImageInput) -> NDArray[np.uint8]:
    """A picture as (h, w, 3). For some models the transparent colour of its palette becomes white."""
    if image.white_for_transparent:
        return np.asarray(image_transforms.convert_to_rgb(picture, return_numpy=True), np.uint8)
    return np.asarray(picture, np.uint8)


def target(height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width to resize to."""
    if size.HasField("longest_edge"):
        return image_transforms.get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    if size.HasField("shortest_edge"):
        empty = np.empty((3, height, width), np.bool_)  # only its shape is used
        return image_transforms.get_resize_output_image_size(
            empty, size.shortest_edge, default_to_square=False, input_data_format=FIRST
        )
    return size.height, size.width


def max_resized_pixels(size: Size) -> int:
    """The pixels of a resized image; with `shortest_edge`, of one that is twice as long as wide."""
    return size.height * size.width or 2 * size.shortest_edge**2


def cropped(values: NDArray[np.uint8], image: ImageInput) -> NDArray[np.uint8]:
    """The centre crop of (3, h, w)."""
    height, width = image.crop.height, image.crop.width
    more = values.shape[1] - height, values.shape[2] - width
    if image.crop_half_to_even and min(more) >= 0:
        top, left = (round(pixels / 2) for pixels in more)
        return values[:, top : top + height, left : left + width]
    return image_transforms.center_crop(values, (height, width), data_format=FIRST, input_data_format=FIRST)


def rescaled(values: NDArray[np.uint8], image: ImageInput) -> Pixels:
    """Rescale and normalise grey levels."""
    result = values.astype(np.float32)
    if image.HasField("rescale"):
        result = image_transforms.rescale(values, image.rescale, data_format=FIRST, input_data_format=FIRST)
    if image.mean:
        result = image_transforms.normalize(
            result, list(image.mean), list(image.deviation), data_format=FIRST, input_data_format=FIRST
        )
    return np.ascontiguousarray(result, np.float32)
