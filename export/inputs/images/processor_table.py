"""The known image processors of transformers, and the translation of their settings to the manifest's steps.

Most have the same steps, each with a `do_` switch: resize, centre crop, rescale, normalise. A class with other steps
has a rule in the table. All functions raise ExportError with the setting that is not understood, without the file.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np

from export.errors import ExportError
from export.inputs.images.steps import max_resized_pixels
from protos.artifact import MAX_RESIZED_PIXELS
from protos.manifest_pb2 import ImageInput, Size

CHANNELS = 3
MAX_SIDE = (1 << 32) - 1  # pixels of a side that the manifest can have
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number
WARPED = 384  # ConvNext stretches images of this size and more, and crops smaller ones


def size(field: str, found: Any) -> Size:
    """Pixels of both sides, of the shortest edge, or of that with a bound on the longest."""
    edges = dict(found or {})
    if edges.keys() not in ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        expected = "height and width, or shortest_edge (with longest_edge or without)"
        raise ExportError(f"{field}: found {edges}, expected {expected}")
    wrong = {edge: pixels for edge, pixels in edges.items() if type(pixels) is not int or not 1 <= pixels <= MAX_SIDE}
    if wrong:
        raise ExportError(f"{field}: found {wrong}, expected whole numbers of pixels")
    return Size(**edges)


def plain_resize(processor: Any, image: ImageInput) -> None:
    """Resize to `size`."""
    image.resize.CopyFrom(size("size", processor.size))


def enlarged_resize(processor: Any, image: ImageInput) -> None:
    """LeViT: the shortest edge becomes 256/224 of `size`."""
    image.resize.CopyFrom(size("size", processor.size))
    if image.resize.HasField("shortest_edge"):
        image.resize.CopyFrom(Size(shortest_edge=int((256 / 224) * image.resize.shortest_edge)))


def fraction(processor: Any) -> float:
    """`crop_pct`: the share of the resized image that is left after the crop."""
    return positive("crop_pct", processor.crop_pct)


def poolformer_resize(processor: Any, image: ImageInput) -> None:
    """To `size` over `crop_pct`, if there is one; two equal sides mean the shortest edge."""
    if processor.crop_pct is None:
        return plain_resize(processor, image)
    wanted, part = size("size", processor.size), fraction(processor)
    if wanted.HasField("shortest_edge") or wanted.height == wanted.width:
        image.resize.CopyFrom(Size(shortest_edge=int((wanted.shortest_edge or wanted.height) / part)))
    else:
        image.resize.CopyFrom(Size(height=int(wanted.height / part), width=int(wanted.width / part)))


def convnext_resize(processor: Any, image: ImageInput) -> None:
    """Resizing crops as well: `crop_pct` of an image below 384 pixels is kept, a larger one is stretched."""
    wanted = size("size", processor.size)
    if not wanted.HasField("shortest_edge"):
        raise ExportError(f"size: found {dict(processor.size)}, expected shortest_edge, as ConvNext reads it")
    edge = wanted.shortest_edge
    square = Size(height=edge, width=edge)
    if edge >= WARPED:
        image.resize.CopyFrom(square)
        return
    if processor.do_center_crop and size("crop_size", processor.crop_size) != square:
        found = dict(processor.crop_size or {})
        raise ExportError(f"crop_size: found {found}, expected {edge} × {edge}, which resizing leaves")
    image.resize.CopyFrom(Size(shortest_edge=int(edge / fraction(processor))))
    image.crop.CopyFrom(square)


def efficientnet_normalised(processor: Any, image: ImageInput) -> None:
    """Rescaling may take 1 off, and the deviation may be divided by a second time: one mean and deviation say both."""
    mean, deviation = np.array(list(image.mean) or [0.0] * 3), np.array(list(image.deviation) or [1.0] * 3)
    if processor.do_rescale and processor.rescale_offset:
        mean = mean + 1
    if processor.include_top:
        deviation = deviation * channel_values("image_std", processor.image_std)
    image.mean[:], image.deviation[:] = mean.tolist(), deviation.tolist()


def as_it_is(processor: Any, image: ImageInput) -> None:
    """Nothing more than the switches say."""


@dataclass(frozen=True)
class Rules:
    """How a class of processors differs from the common steps."""

    resize: Callable[[Any, ImageInput], None] = plain_resize
    finish: Callable[[Any, ImageInput], None] = as_it_is
    pads: bool = True  # where `do_pad` says so
    refused: dict[str, str] = field(default_factory=dict)  # switches that must be off → their effect


PROCESSORS: dict[str, Rules] = {
    "ViTImageProcessor": Rules(),  # of Swin, DINO and others, too
    "DeiTImageProcessor": Rules(),
    "BeitImageProcessor": Rules(pads=False),
    "CLIPImageProcessor": Rules(),
    "ChineseCLIPImageProcessor": Rules(),
    "SiglipImageProcessor": Rules(),
    "BlipImageProcessor": Rules(),
    "FlavaImageProcessor": Rules(pads=False),
    "OwlViTImageProcessor": Rules(),
    "BitImageProcessor": Rules(),  # of DINOv2, too
    "PvtImageProcessor": Rules(),
    "MobileNetV1ImageProcessor": Rules(),
    "MobileNetV2ImageProcessor": Rules(pads=False),
    "MobileViTImageProcessor": Rules(
        pads=False, refused={"do_flip_channel_order": "puts blue in the place of red, which the server does not do"}
    ),
    "EfficientNetImageProcessor": Rules(finish=efficientnet_normalised, pads=False),
    "ConvNextImageProcessor": Rules(resize=convnext_resize, pads=False),
    "LevitImageProcessor": Rules(resize=enlarged_resize),
    "PoolFormerImageProcessor": Rules(resize=poolformer_resize),
}


def plain_name(processor: type) -> str:
    """The name in files of a processor class for Pillow's images."""
    return processor.__name__.removesuffix("Pil")


def manifest_of(processor: Any, image_size: int) -> ImageInput:
    """A processor's settings as the manifest's steps. ExportError names a setting that is not understood."""
    try:
        return steps_of(processor, image_size)
    except (ValueError, OverflowError) as error:  # sizes and factors that only together are out of range
        raise ExportError(f"found a number out of range ({error}), expected sizes and factors of images") from error


def steps_of(processor: Any, image_size: int) -> ImageInput:
    """The same, with the errors of numbers that the manifest cannot have."""
    rules = PROCESSORS[plain_name(type(processor))]
    for switch, effect in rules.refused.items():
        if getattr(processor, switch, None):
            raise ExportError(f"{switch}: found true, expected false: it {effect}")
    image = ImageInput(height=image_size, width=image_size, white_for_transparent=bool(processor.do_convert_rgb))
    if processor.do_resize:
        image.resample = resample(processor.resample)
        rules.resize(processor, image)
        if (pixels := max_resized_pixels(image.resize)) > MAX_RESIZED_PIXELS:
            raise ExportError(f"size: found images resized to {pixels} pixels, expected at most {MAX_RESIZED_PIXELS}")
    if processor.do_center_crop and not image.HasField("crop"):
        image.crop.CopyFrom(both_sides("crop_size", processor.crop_size))
    if processor.do_rescale:
        image.rescale = positive("rescale_factor", processor.rescale_factor)
    if processor.do_normalize:
        image.mean.extend(channel_values("image_mean", processor.image_mean))
        image.deviation.extend(deviations(processor.image_std))
    if rules.pads and getattr(processor, "do_pad", None) and processor.pad_size is not None:
        image.pad.CopyFrom(both_sides("pad_size", processor.pad_size))
    rules.finish(processor, image)
    return image


def both_sides(field: str, found: Any) -> Size:
    """Height and width."""
    sides = size(field, found)
    if not sides.HasField("height"):
        raise ExportError(f"{field}: found {dict(found)}, expected height and width")
    return sides


def resample(found: Any) -> str:
    """A filter's name, from Pillow's number."""
    if isinstance(found, int) and 0 <= found < len(RESAMPLE):
        return RESAMPLE[found]
    numbers = ", ".join(f"{number} ({name})" for number, name in enumerate(RESAMPLE))
    raise ExportError(f"resample: found {found!r}, expected one of {numbers}")


def positive(field: str, found: Any) -> float:
    """A number above 0."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0 or not isfinite(found):
        raise ExportError(f"{field}: found {found!r}, expected a number above 0")
    return float(found)


def channel_values(field: str, found: Any) -> list[float]:
    """One number for each channel; a single number stands for all."""
    values = list(found) if isinstance(found, list | tuple) else [found] * CHANNELS
    if len(values) != CHANNELS or not all(isinstance(value, int | float) and isfinite(value) for value in values):
        raise ExportError(f"{field}: found {found}, expected {CHANNELS} numbers")
    return [float(value) for value in values]


def deviations(found: Any) -> list[float]:
    """One number for each channel, none of them zero."""
    values = channel_values("image_std", found)
    if not all(values):
        raise ExportError(f"image_std: found {values}, expected no zero: images are divided by it")
    return values
