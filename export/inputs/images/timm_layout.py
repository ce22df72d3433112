"""timm's preprocessing: `pretrained_cfg` in `config.json`, or, in older files, the same keys at the top level.

timm's evaluation transform resizes the shortest edge to a little more than the model's size (`crop_pct`), or squashes
both edges, and crops the centre. It uses torchvision's transforms on Pillow's images: `Resize` computes the same size
and calls the same filter as transformers, `CenterCrop` rounds half a pixel of its offset to the even side, and
`ToTensor` divides by 255. So the manifest's steps with `crop_half_to_even` are timm's transform, and timm need not be
installed. `test_input_size`, `test_crop_pct` and `fixed_input_size` have no effect: timm uses them only to evaluate at
another size than the model's own.
"""

from math import floor, isfinite
from typing import Any

from export.errors import ExportError
from export.inputs.images.steps import max_resized_pixels
from protos.artifact import MAX_RESIZED_PIXELS
from protos.manifest_pb2 import ImageInput, Size

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP_PCT = 0.875
MAX_SIDE = (1 << 32) - 1  # pixels of a side that the manifest can have
FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MODES = ("center", "squash")
CHANNELS = 3
Json = dict[str, Any]


def settings(config: Json) -> Json:
    """The settings of the pretrained weights, nested or at the top level."""
    nested = config.get("pretrained_cfg", config)
    return nested if isinstance(nested, dict) else {}


def image_input(config: Json, image_size: int) -> ImageInput:
    """timm's evaluation transform for images of `image_size` pixels a side. ExportError names an unknown setting."""
    found = settings(config)
    check_size(found, image_size)
    fraction = number("crop_pct", found.get("crop_pct") or CROP_PCT)
    if not 0 < fraction <= 1:
        raise ExportError(f"config.json: crop_pct: found {fraction}, expected more than 0 and at most 1")
    scaled = floor(min(image_size / fraction, MAX_SIDE))
    squash = chosen("crop_mode", found.get("crop_mode") or "center", MODES) == "squash"
    resize = Size(height=scaled, width=scaled) if squash else Size(shortest_edge=scaled)
    if max_resized_pixels(resize) > MAX_RESIZED_PIXELS:
        found_text = f"found {fraction}, which resizes images to {scaled} pixels a side"
        raise ExportError(f"config.json: crop_pct: {found_text}, expected at most {MAX_RESIZED_PIXELS} pixels in all")
    return ImageInput(
        height=image_size,
        width=image_size,
        resize=resize,
        resample=chosen("interpolation", found.get("interpolation") or "bicubic", FILTERS),
        crop=Size(height=image_size, width=image_size),
        crop_half_to_even=True,
        rescale=1 / 255,
        mean=channels("mean", found.get("mean"), MEAN),
        deviation=deviations(found.get("std")),
    )


def check_size(found: Json, image_size: int) -> None:
    """ExportError if timm would give images of another size than the model takes."""
    size = found.get("input_size")
    expected = [CHANNELS, image_size, image_size]
    if size is not None and size != expected:
        raise ExportError(f"config.json: input_size: found {size!r}, expected the model's {expected}")


def chosen(key: str, found: Any, expected: tuple[str, ...]) -> str:
    """A value that is one of the `expected`."""
    if found not in expected:
        raise ExportError(f"config.json: {key}: found {found!r}, expected one of {', '.join(expected)}")
    return str(found)


def number(key: str, found: Any) -> float:
    """A finite number, which is not True or False."""
    try:
        if not isinstance(found, bool) and isinstance(found, int | float) and isfinite(found):
            return float(found)
    except OverflowError:  # an integer that no float can have
        pass
    raise ExportError(f"config.json: {key}: found {found!r}, expected a number")


def channels(key: str, found: Any, default: tuple[float, ...]) -> list[float]:
    """One number for each channel; a list of one number is for all channels."""
    values = list(default if found is None else found) if not isinstance(found, int | float) else [found]
    if len(values) not in (1, CHANNELS):
        raise ExportError(f"config.json: {key}: found {values}, expected {CHANNELS} numbers")
    return [number(key, value) for value in (values * CHANNELS)[:CHANNELS]]


def deviations(found: Any) -> list[float]:
    """One number for each channel, none of them zero."""
    values = channels("std", found, DEVIATION)
    if not all(values):
        raise ExportError(f"config.json: std: found {values}, expected no zero: images are divided by it")
    return values
