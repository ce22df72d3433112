"""From an image file to `pixel_values`: what the checkpoint's own preprocessing does, in the manifest's words.

The image processor is read by transformers (`preprocessor_config.json`, or `image_processor` in
`processor_config.json`): what a number, a null, a missing or an older key means is what the instance says. It is always
the processor that works on Pillow's images: those of torchvision resize a little differently. timm's layout is read in
`timm_layout`.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, BaseImageProcessor, BitImageProcessorPil, ImageProcessingMixin
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from export.errors import ExportError
from export.files import read_json
from export.inputs import image_steps, timm_layout
from export.inputs.image_steps import Pixels
from protos.manifest_pb2 import ImageInput, Size

CHANNELS = 3
FILES = ("preprocessor_config.json", "processor_config.json")
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number
WARPED = 384  # ConvNext stretches images of this size and more, and crops smaller ones
SUFFIX = "ImageProcessor"
LONGEST_REASON = 200  # characters of an error of transformers: it can list two hundred types of models
# Classes that transformers 5 no longer has → the one that has the same steps and defaults.
REPLACED: dict[str, type[BaseImageProcessor]] = {"ViTHybridImageProcessor": BitImageProcessorPil}


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture, in the manifest's words, and the reference that does it."""

    manifest: ImageInput
    reference: Callable[[Image.Image], Pixels]  # a picture in RGB → (3, h, w)
    remarks: list[str] = field(default_factory=list)  # for the user


def read(directory: Path, *, image_size: int, channels: int, trained: int | None = None) -> Preprocessing:
    """The preprocessing for a model of images of `image_size` pixels a side. ExportError if the two do not fit.

    Where the model was `trained` for another size, and its files are for that one, everything grows in proportion.
    """
    if channels != CHANNELS:
        raise ExportError(f"config.json: found images of {channels} channels, expected {CHANNELS}")
    config = read_json(directory / "config.json")
    if "architecture" in config:
        image = timm_layout.image_input(config, image_size)
        return Preprocessing(image, lambda picture: image_steps.pixel_values(picture, image))
    processor, remarks = load(directory)
    found = manifest_of(processor, image_size)
    if trained not in (None, image_size) and ends_at(found, trained):
        grow(processor, image_size / trained)
        found = manifest_of(processor, image_size)
    check(found, image_size, trained or image_size)
    return Preprocessing(found, lambda picture: processed(processor, picture), remarks)


# ---- transformers' own reading


def load(directory: Path) -> tuple[BaseImageProcessor, list[str]]:
    """The image processor that transformers makes of a checkpoint's files, and what the user should know about it."""
    if not any((directory / file).is_file() for file in FILES):
        raise ExportError(f"{FILES[0]}: found none, expected it to say how an image becomes pixel values")
    settings = settings_of(directory)
    named = name_of(settings)
    if named is not None and named not in (*PROCESSORS, *REPLACED):
        raise unknown(named)
    try:
        if named in REPLACED:
            stand_in = REPLACED[named]
            return stand_in.from_dict(settings), [f"{named} has left transformers: read as {plain_name(stand_in)}"]
        processor: BaseImageProcessor = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            directory, backend="pil", local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a file can make transformers raise
        raise ExportError(f"{FILES[0]}: transformers cannot read it: {in_short(error)}") from error
    if plain_name(type(processor)) not in PROCESSORS or not isinstance(processor, PilBackend):
        raise unknown(plain_name(type(processor)))
    return processor, []


def settings_of(directory: Path) -> dict[str, Any]:
    """The settings as they stand in the file that transformers prefers. ExportError if it is no JSON object."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"{FILES[0]}: transformers cannot read it: {in_short(error)}") from error
    if not isinstance(settings, dict):
        raise ExportError(f"{FILES[0]}: found {settings!r}, expected an object with the image processor's settings")
    return settings


def name_of(settings: dict[str, Any]) -> str | None:
    """The class that a file names, without the endings that older versions gave it; None if it names none."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return str(name).replace("FeatureExtractor", SUFFIX).removesuffix("Fast").removesuffix("Pil") if name else None


def plain_name(processor: type) -> str:
    """What a file calls the class."""
    return processor.__name__.removesuffix("Pil")


def unknown(name: str) -> ExportError:
    """The refusal of a processor that is not in the table."""
    return ExportError(
        f"{FILES[0]}: image_processor_type: found {name}, expected one of {', '.join([*PROCESSORS, *REPLACED])}; "
        "if one of these prepares images as the model needs them, name it there"
    )


def processed(processor: BaseImageProcessor, picture: Image.Image) -> Pixels:
    """What the processor makes of one picture in RGB, (3, h, w)."""
    try:
        values = processor(images=picture, return_tensors="np")["pixel_values"]
    except Exception as error:  # whatever a setting can make transformers raise
        name = plain_name(type(processor))
        raise ExportError(f"{FILES[0]}: {name} of transformers cannot work with it: {in_short(error)}") from error
    return np.asarray(values[0], np.float32)


def in_short(error: Exception) -> str:
    """The beginning of an error's text, which may be long."""
    return textwrap.shorten(str(error) or type(error).__name__, LONGEST_REASON, placeholder=" …")


def grow(processor: BaseImageProcessor, factor: float) -> None:
    """Make every step's sizes larger by one factor, or smaller."""
    for name in ("size", "crop_size", "pad_size"):
        size = getattr(processor, name, None)
        if size is not None:
            setattr(processor, name, SizeDict(**{edge: round(pixels * factor) for edge, pixels in dict(size).items()}))


# ---- the table of processors


def size(field: str, found: Any) -> Size:
    """Pixels of both sides, of the shortest edge, or of that with a bound on the longest."""
    edges = dict(found or {})
    if edges.keys() not in ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        expected = "height and width, or shortest_edge (with longest_edge or without)"
        raise ExportError(f"{FILES[0]}: {field}: found {edges}, expected {expected}")
    wrong = {edge: pixels for edge, pixels in edges.items() if not isinstance(pixels, int) or pixels < 1}
    if wrong:
        raise ExportError(f"{FILES[0]}: {field}: found {wrong}, expected whole numbers of pixels")
    return Size(**edges)


def plain_resize(processor: Any, image: ImageInput) -> None:
    """To `size`, whatever it is."""
    image.resize.CopyFrom(size("size", processor.size))


def enlarged_resize(processor: Any, image: ImageInput) -> None:
    """LeViT: the shortest edge is made 256/224 of what `size` says."""
    image.resize.CopyFrom(size("size", processor.size))
    if image.resize.HasField("shortest_edge"):
        image.resize.CopyFrom(Size(shortest_edge=int((256 / 224) * image.resize.shortest_edge)))


def fraction(processor: Any) -> float:
    """`crop_pct`: how much of the resized image is left after the crop."""
    found = processor.crop_pct
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise ExportError(f"{FILES[0]}: crop_pct: found {found!r}, expected a number above 0")
    return float(found)


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
        raise ExportError(
            f"{FILES[0]}: size: found {dict(processor.size)}, expected shortest_edge, as ConvNext reads it"
        )
    edge = wanted.shortest_edge
    square = Size(height=edge, width=edge)
    if edge >= WARPED:
        image.resize.CopyFrom(square)
        return
    if processor.do_center_crop and size("crop_size", processor.crop_size) != square:
        found = dict(processor.crop_size or {})
        raise ExportError(f"{FILES[0]}: crop_size: found {found}, expected {edge} × {edge}, which resizing leaves")
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
    """What a class of processors does otherwise than the most of them."""

    resize: Callable[[Any, ImageInput], None] = plain_resize
    finish: Callable[[Any, ImageInput], None] = as_it_is
    pads: bool = True  # where `do_pad` says so
    refused: dict[str, str] = field(default_factory=dict)  # switches that must be off → what they do


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


def manifest_of(processor: Any, image_size: int) -> ImageInput:
    """A processor's settings as steps. ExportError names the setting that is not understood."""
    rules = PROCESSORS[plain_name(type(processor))]
    for switch, effect in rules.refused.items():
        if getattr(processor, switch, None):
            raise ExportError(f"{FILES[0]}: {switch}: found true, expected false: it {effect}")
    image = ImageInput(height=image_size, width=image_size, white_for_transparent=bool(processor.do_convert_rgb))
    if processor.do_resize:
        image.resample = resample(processor.resample)
        rules.resize(processor, image)
    if processor.do_center_crop and not image.HasField("crop"):
        image.crop.CopyFrom(both_sides("crop_size", processor.crop_size))
    if processor.do_rescale:
        image.rescale = factor(processor.rescale_factor)
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
        raise ExportError(f"{FILES[0]}: {field}: found {dict(found)}, expected height and width")
    return sides


def resample(found: Any) -> str:
    """A filter's name, from Pillow's number."""
    if isinstance(found, int) and 0 <= found < len(RESAMPLE):
        return RESAMPLE[found]
    numbers = ", ".join(f"{number} ({name})" for number, name in enumerate(RESAMPLE))
    raise ExportError(f"{FILES[0]}: resample: found {found!r}, expected one of {numbers}")


def factor(found: Any) -> float:
    """By what grey levels are multiplied."""
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise ExportError(f"{FILES[0]}: rescale_factor: found {found!r}, expected a number above 0")
    return float(found)


def channel_values(field: str, found: Any) -> list[float]:
    """One number for each channel; a single number stands for all."""
    values = list(found) if isinstance(found, list | tuple) else [found] * CHANNELS
    if len(values) != CHANNELS or not all(isinstance(value, int | float) for value in values):
        raise ExportError(f"{FILES[0]}: {field}: found {found}, expected {CHANNELS} numbers")
    return [float(value) for value in values]


def deviations(found: Any) -> list[float]:
    """One number for each channel, none of them zero."""
    values = channel_values("image_std", found)
    if not all(values):
        raise ExportError(f"{FILES[0]}: image_std: found {values}, expected no zero: images are divided by it")
    return values


# ---- whether the steps fit the model


def last_size(image: ImageInput) -> Size | None:
    """Height and width that the steps end at; None if they depend on the image."""
    for step in ("pad", "crop", "resize"):
        if image.HasField(step):
            found: Size = getattr(image, step)
            return found if found.HasField("height") else None
    return None


def ends_at(image: ImageInput, image_size: int) -> bool:
    """Whether the steps make images of `image_size` pixels a side, as far as they say it."""
    last = last_size(image)
    known = last is not None and (image.HasField("resize") or image.HasField("crop"))
    return not known or last is None or (last.height, last.width) == (image_size, image_size)


def check(image: ImageInput, image_size: int, trained: int) -> None:
    """ExportError if the steps do not end at the size of the model's input."""
    last = last_size(image)
    if last is None or ends_at(image, image_size):
        return
    hint = "" if image_size != trained else f"; --image-size {last.height} interpolates its positions to that size"
    raise ExportError(
        f"preprocessor_config.json: found images of {last.height} × {last.width}, "
        f"expected the model's {image_size} × {image_size}{hint}"
    )
