"""From an image file to `pixel_values`: what the checkpoint's own preprocessing does, in the manifest's words.

Two layouts: `preprocessor_config.json` of transformers, and `pretrained_cfg` in the `config.json` of timm.
"""

from math import floor
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.files import read_json
from protos.manifest_pb2 import ImageInput, Size

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number
BILINEAR, BICUBIC = 2, 3
RESCALE = 1 / 255
HALF = [0.5, 0.5, 0.5]
# What transformers' image processors do where a file is silent, by the beginning of the processor's name.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ViT": {"do_center_crop": False, "resample": BILINEAR, "image_mean": HALF, "image_std": HALF},
    "DeiT": {
        "do_center_crop": True,
        "size": 256,
        "crop_size": 224,
        "resample": BICUBIC,
        "image_mean": HALF,
        "image_std": HALF,
    },
}
MUST_SAY = ("size", "do_center_crop", "resample", "image_mean", "image_std")  # a file of any other processor
TIMM_MEAN, TIMM_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM_CROP = 0.875
CHANNELS = 3


def read(directory: Path, *, image_size: int, channels: int, trained: int | None = None) -> ImageInput:
    """The preprocessing for a model of images of `image_size` pixels a side. ExportError if the two do not fit.

    Where the model was `trained` for another size, and its files are for that one, everything grows in proportion.
    """
    if channels != CHANNELS:
        raise ExportError(f"config.json: found images of {channels} channels, expected {CHANNELS}")
    config = read_json(directory / "config.json")
    if "architecture" in config:
        return of_timm(config.get("pretrained_cfg") or {}, image_size)
    preprocessing = read_json(directory / "preprocessor_config.json")
    if not preprocessing:
        raise ExportError("preprocessor_config.json: found none, expected it to say how an image becomes pixel values")
    found = of_transformers(with_defaults(preprocessing), image_size)
    if trained not in (None, image_size) and ends_at(found, trained):
        grow(found, image_size / trained)
    check(found, image_size, trained or image_size)
    return found


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The file, and what its processor assumes where the file is silent."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "ViT")
    for name, defaults in DEFAULTS.items():
        if kind.startswith(name):
            return defaults | config
    silent = [key for key in MUST_SAY if key not in config]
    if silent:
        raise ExportError(f"preprocessor_config.json: found a {kind} and no {', '.join(silent)}, expected all of them")
    return config


def of_transformers(config: dict[str, Any], image_size: int) -> ImageInput:
    """The steps in their order: one is taken unless a `do_` switch says no."""
    image = ImageInput(height=image_size, width=image_size)
    side = {"height": image_size, "width": image_size}
    if config.get("do_resize", True):
        image.resize.CopyFrom(size("size", config.get("size", side)))
        image.resample = resample(config["resample"])
    if config["do_center_crop"]:
        image.crop.CopyFrom(size("crop_size", config.get("crop_size", side)))
    if config.get("do_rescale", True):
        image.rescale = config.get("rescale_factor", RESCALE)
    if config.get("do_normalize", True):
        image.mean.extend(channel_values("image_mean", config["image_mean"]))
        image.deviation.extend(channel_values("image_std", config["image_std"]))
    return image


def of_timm(config: dict[str, Any], image_size: int) -> ImageInput:
    """As timm's evaluation reads it: resize to a little more than needed, and cut out the middle."""
    if config.get("crop_mode", "center") != "center":
        raise ExportError(f"pretrained_cfg.crop_mode: found {config['crop_mode']!r}, expected 'center'")
    shortest = floor(image_size / config.get("crop_pct", TIMM_CROP))
    return ImageInput(
        height=image_size,
        width=image_size,
        resize=Size(shortest_edge=shortest),
        resample=resample(config.get("interpolation", "bicubic")),
        crop=Size(height=image_size, width=image_size),
        rescale=RESCALE,
        mean=channel_values("mean", config.get("mean", TIMM_MEAN)),
        deviation=channel_values("std", config.get("std", TIMM_DEVIATION)),
    )


def size(field: str, found: Any) -> Size:
    """Pixels as a number (of both sides), or an object of height and width, or of the shortest edge."""
    if isinstance(found, int):
        return Size(height=found, width=found)
    if isinstance(found, dict) and found.keys() == {"height", "width"}:
        return Size(height=found["height"], width=found["width"])
    if isinstance(found, dict) and found.keys() == {"shortest_edge"}:
        return Size(shortest_edge=found["shortest_edge"])
    raise ExportError(f"preprocessor_config.json: {field}: found {found}, expected height and width, or shortest_edge")


def resample(found: int | str) -> str:
    """A filter's name from its name or Pillow's number."""
    if isinstance(found, int) and 0 <= found < len(RESAMPLE):
        return RESAMPLE[found]
    if found in RESAMPLE:
        return str(found)
    raise ExportError(f"resample: found {found!r}, expected one of {', '.join(RESAMPLE)} or its number")


def channel_values(field: str, found: Any) -> list[float]:
    """One number for each channel."""
    values = list(found) if isinstance(found, list | tuple) else [found] * CHANNELS
    if len(values) != CHANNELS:
        raise ExportError(f"{field}: found {values}, expected {CHANNELS} numbers")
    return [float(value) for value in values]


def ends_at(image: ImageInput, image_size: int) -> bool:
    """Whether the steps make images of `image_size` pixels a side, as far as they say it."""
    last = image.crop if image.HasField("crop") else image.resize
    known = last.HasField("height") and image.HasField("resize")
    return not known or (last.height, last.width) == (image_size, image_size)


def grow(image: ImageInput, factor: float) -> None:
    """Make every step's sizes larger by one factor, or smaller."""
    for step in (image.resize, image.crop):
        for field, pixels in step.ListFields():
            setattr(step, field.name, round(pixels * factor))


def check(image: ImageInput, image_size: int, trained: int) -> None:
    """ExportError if the steps do not end at the size of the model's input."""
    if ends_at(image, image_size):
        return
    last = image.crop if image.HasField("crop") else image.resize
    hint = "" if image_size != trained else f"; --image-size {last.height} interpolates its positions to that size"
    raise ExportError(
        f"preprocessor_config.json: found images of {last.height} × {last.width}, "
        f"expected the model's {image_size} × {image_size}{hint}"
    )
