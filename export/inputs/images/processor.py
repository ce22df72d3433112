"""The preprocessing of a checkpoint's images, from its files to the manifest's steps.

transformers loads the image processor (`preprocessor_config.json`, or `image_processor` in `processor_config.json`), so
that defaults, nulls and older keys have the meaning that the library gives them. The processor is always the one for
Pillow's images, because that for torchvision resizes a little differently. `processor_table` translates its settings;
`timm_layout` reads timm's.
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
from export.inputs.images import steps, timm_layout
from export.inputs.images.processor_table import CHANNELS, PROCESSORS, manifest_of, plain_name
from export.inputs.images.steps import Pixels
from export.sources.json_files import read_json
from protos.manifest_pb2 import ImageInput, Size

FILE = "preprocessor_config.json"
NESTED, KEY = "processor_config.json", "image_processor"  # a file for all modalities, and its key for images
SUFFIX = "ImageProcessor"
LONGEST_REASON = 200  # characters of an error of transformers, which can list two hundred model types
# Classes that transformers 5 no longer has, and those with the same steps and defaults.
REPLACED: dict[str, type[BaseImageProcessor]] = {"ViTHybridImageProcessor": BitImageProcessorPil}


@dataclass(frozen=True)
class Preprocessing:
    """The manifest's steps for a picture, and the reference that they reproduce."""

    image_input: ImageInput
    reference: Callable[[Image.Image], Pixels]  # a picture in RGB → (3, h, w)
    remarks: list[str] = field(default_factory=list)  # for the user


def read(directory: Path, *, image_size: int, channels: int, trained: int | None = None) -> Preprocessing:
    """The preprocessing for a model of images of `image_size` pixels a side. ExportError if the two do not fit.

    If the model was `trained` on another size, and its files are for that size, all sizes are scaled in proportion.
    """
    if channels != CHANNELS:
        raise ExportError(f"config.json: found images of {channels} channels, expected {CHANNELS}")
    config = read_json(directory / "config.json")
    if "architecture" in config:
        image = timm_layout.image_input(config, image_size)
        return Preprocessing(image, lambda picture: steps.pixel_values(picture, image))
    file = settings_file(directory)
    try:
        return transformers_preprocessing(directory, file, image_size, trained or image_size)
    except ExportError as error:
        raise ExportError(f"{file}: {error}") from error


def settings_file(directory: Path) -> str:
    """The file from which transformers reads the settings. ExportError if there is none."""
    if read_json(directory / NESTED).get(KEY) is not None:
        return NESTED
    if (directory / FILE).is_file():
        return FILE
    also = f" (and no {KEY} in {NESTED})" if (directory / NESTED).is_file() else ""
    raise ExportError(f"{FILE}: found none{also}, expected it to say how an image becomes pixel values")


def transformers_preprocessing(directory: Path, file: str, image_size: int, trained: int) -> Preprocessing:
    """The preprocessing of an image processor of transformers. Its ExportErrors do not name the file."""
    processor, remarks = load(directory)
    found = manifest_of(processor, image_size)
    if trained != image_size and ends_at(found, trained):
        scale_sizes(processor, image_size / trained)
        found = manifest_of(processor, image_size)
    check(found, image_size, trained)
    return Preprocessing(found, lambda picture: processed(processor, picture, file), remarks)


def load(directory: Path) -> tuple[BaseImageProcessor, list[str]]:
    """The image processor that transformers loads from a checkpoint's files, and remarks for the user."""
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
    except Exception as error:  # a file can cause any exception in transformers
        raise ExportError(f"transformers cannot read it: {in_short(error)}") from error
    if plain_name(type(processor)) not in PROCESSORS or not isinstance(processor, PilBackend):
        raise unknown(plain_name(type(processor)))
    return processor, []


def settings_of(directory: Path) -> dict[str, Any]:
    """The settings in the file that transformers prefers. ExportError if it is not a JSON object."""
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(directory, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"transformers cannot read it: {in_short(error)}") from error
    if not isinstance(settings, dict):
        raise ExportError(f"found {settings!r}, expected an object with the image processor's settings")
    return settings


def name_of(settings: dict[str, Any]) -> str | None:
    """The class that a file names, without the suffixes of older versions; None if it names none."""
    name = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return str(name).replace("FeatureExtractor", SUFFIX).removesuffix("Fast").removesuffix("Pil") if name else None


def unknown(name: str) -> ExportError:
    """The error for a processor that is not in the table."""
    return ExportError(
        f"image_processor_type: found {name}, expected one of {', '.join([*PROCESSORS, *REPLACED])}; "
        "if one of these prepares images as the model needs them, name it there"
    )


def processed(processor: BaseImageProcessor, picture: Image.Image, file: str) -> Pixels:
    """The processor's result for one picture in RGB, (3, h, w)."""
    try:
        values = processor(images=picture, return_tensors="np")["pixel_values"]
    except Exception as error:  # a setting can cause any exception in transformers
        name = plain_name(type(processor))
        raise ExportError(f"{file}: {name} of transformers cannot work with it: {in_short(error)}") from error
    return np.asarray(values[0], np.float32)


def in_short(error: Exception) -> str:
    """The beginning of an error's text, which may be long."""
    return textwrap.shorten(str(error) or type(error).__name__, LONGEST_REASON, placeholder=" …")


def scale_sizes(processor: BaseImageProcessor, factor: float) -> None:
    """Scale the sizes of all steps by one factor."""
    for name in ("size", "crop_size", "pad_size"):
        size = getattr(processor, name, None)
        if size is not None:
            setattr(processor, name, SizeDict(**{edge: round(pixels * factor) for edge, pixels in dict(size).items()}))


def last_size(image: ImageInput) -> Size | None:
    """The height and width after the last step, of a square image if they depend on it; None if nothing is resized."""
    if not image.HasField("resize") and not image.HasField("crop"):
        return None
    last = next(getattr(image, step) for step in ("pad", "crop", "resize") if image.HasField(step))
    return last if last.HasField("height") else Size(height=last.shortest_edge, width=last.shortest_edge)


def ends_at(image: ImageInput, image_size: int) -> bool:
    """Whether the steps give images of `image_size` pixels a side, as far as it is known."""
    last = last_size(image)
    return last is None or (last.height, last.width) == (image_size, image_size)


def check(image: ImageInput, image_size: int, trained: int) -> None:
    """ExportError if the steps do not give the size of the model's input."""
    last = last_size(image)
    if last is None or ends_at(image, image_size):
        return
    hint = ""
    if image_size == trained and last.height == last.width:
        hint = f"; --image-size {last.height} interpolates its positions to that size"
    raise ExportError(
        f"found images of {last.height} × {last.width}, expected the model's {image_size} × {image_size}{hint}"
    )
