"""Golden images: small image files, and the pixel values that the checkpoint's own image processor makes of them.

They are part of the artifact. The server preprocesses them with its own code before it serves the model, and refuses
the model if a pixel differs by more than a grey level. The images are computed by formulas, so that the same export
gives the same bytes.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image
from safetensors.numpy import save as serialised

from export.errors import ExportError
from export.inputs.images.processor import Preprocessing
from export.inputs.images.steps import Pixels, loaded, pixel_values
from protos.artifact import FILE, PIXEL_TOLERANCE, PIXEL_VALUES, image_key
from protos.golden import GoldenImage, grey_levels
from protos.manifest_pb2 import ImageInput

QUARTER_TURN = 6  # EXIF: turn clockwise
TRANSPARENT = 3  # an entry of a palette
AGREED = 0.01  # grey levels by which the manifest's steps may differ from the image processor here


def make(preprocessing: Preprocessing) -> bytes:
    """The contents of `golden_images.safetensors`.

    ExportError if the manifest's steps give other pixels than the image processor.
    """
    image = preprocessing.image_input
    tensors: dict[str, np.ndarray] = {}
    for number, (kind, file) in enumerate(files(image).items()):
        picture = loaded(file)
        expected = preprocessing.reference(picture)
        compare(kind, expected, pixel_values(picture, image), image)
        tensors[image_key(number, FILE)] = np.frombuffer(file, np.uint8)
        tensors[image_key(number, PIXEL_VALUES)] = expected
    return serialised(tensors)


def compare(kind: str, expected: Pixels, found: Pixels, image: ImageInput) -> None:
    """ExportError if the steps give other pixels than the image processor."""
    if expected.shape != found.shape:
        raise ExportError(
            f"the image processor makes {expected.shape} of a {kind} image, expected the model's {found.shape}"
        )
    error = grey_levels(expected - found, image)
    if not error <= AGREED:
        raise ExportError(
            f"the image processor and the manifest's steps differ on a {kind} image: found {error:.2g} grey levels, "
            f"expected at most {AGREED:g}; this version of transformers may have changed the processor"
        )


def verify(images: Sequence[GoldenImage], image: ImageInput) -> dict[str, float]:
    """Preprocess golden images again by the manifest's steps. ExportError if a pixel is out of tolerance."""
    errors = [distance(number, golden.file, golden.pixel_values, image) for number, golden in enumerate(images)]
    return {"golden_images": len(errors), "pixel_error": max(errors)}


def distance(number: int, file: bytes, expected: Pixels, image: ImageInput) -> float:
    """The largest error of a pixel of one image, in grey levels."""
    try:
        found = pixel_values(loaded(file), image)
    except (ExportError, OSError) as refusal:
        raise ExportError(f"golden image {number}: {refusal}: export again") from refusal
    error = grey_levels(found - expected, image) if found.shape == expected.shape else math.inf
    if not error <= PIXEL_TOLERANCE:
        raise ExportError(
            f"golden image {number}: found a pixel {error:.3g} grey levels off, expected at most {PIXEL_TOLERANCE:g}: "
            "the preprocessing in the manifest is not that of the export: export again"
        )
    return error


def files(image: ImageInput) -> dict[str, bytes]:
    """The kind of each image and its file, in different sizes if the model takes them."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = QUARTER_TURN
    palette = draw(*sized(image, 45, 31)).quantize(16)
    return {
        "grey": encode(draw(*sized(image, 40, 29)).convert("L"), "PNG"),
        "palette": encode(palette, "PNG", transparency=TRANSPARENT),
        "transparent": encode(with_transparency(draw(*sized(image, 37, 53))), "PNG"),
        "turned": encode(draw(*sized(image, 34, 50)[::-1]), "JPEG", exif=turned),
        "cmyk": encode(draw(*sized(image, 57, 33)).convert("CMYK"), "JPEG", progressive=True),
        "tiny": encode(draw(*sized(image, 1, 1)), "PNG"),
        "large": encode(draw(*sized(image, image.width + 45, image.height + 22)), "JPEG", quality=90),
    }


def sized(image: ImageInput, width: int, height: int) -> tuple[int, int]:
    """The width and height, or the nearest that the model takes if it does not take all sizes."""
    if image.HasField("crop") or image.resize.HasField("height"):
        return width, height
    if image.HasField("resize"):
        return width, width  # the aspect ratio is kept, and nothing is cropped
    if image.HasField("pad"):
        return min(width, image.width), min(height, image.height)
    return image.width, image.height


def draw(width: int, height: int) -> Image.Image:
    """A picture in RGB with gradients and hard edges."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = 255 * x // max(1, width - 1), 255 * y // max(1, height - 1)
    blue = 40 + 200 * ((x // 5 + y // 7) % 2)
    return Image.fromarray(np.stack([red, green, blue], -1).astype(np.uint8))


def with_transparency(picture: Image.Image) -> Image.Image:
    """Make a picture more transparent towards the right."""
    opacity = np.asarray(picture)[:, :, 0]
    picture.putalpha(Image.fromarray(255 - opacity))
    return picture


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of an image file."""
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()
