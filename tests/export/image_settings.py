"""Image settings of published checkpoints, and the preprocessing that the export reads from them."""

import json
from pathlib import Path
from typing import Any

from export.inputs.images import processor as images
from export.inputs.images.processor import Preprocessing
from protos.manifest_pb2 import ImageInput, Size

# As published with google/vit-base-patch16-224, facebook/deit-base-distilled-patch16-224 and timm/mixer_b16_224.
VIT = {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
DEIT = {
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DeiTFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": 256,
}
TIMM = {
    "architecture": "mixer_b16_224",
    "pretrained_cfg": {"interpolation": "bicubic", "crop_pct": 0.875, "mean": [0.5] * 3, "std": [0.5] * 3},
}
SQUARE = Size(height=224, width=224)


def prepared(
    directory: Path,
    preprocessor: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    *,
    image_size: int = 224,
    trained: int | None = None,
    file: str = "preprocessor_config.json",
) -> Preprocessing:
    """The preprocessing of a checkpoint with these files."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "vit"} if config is None else config))
    if preprocessor is not None:
        (directory / file).write_text(json.dumps(preprocessor))
    return images.read(directory, image_size=image_size, channels=3, trained=trained)


def read(
    directory: Path, preprocessor: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> ImageInput:
    return prepared(directory, preprocessor, config).image_input
