"""What the manifest says of an image is what the checkpoint's own preprocessing does."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.inputs import image_processor as images
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


def read(
    directory: Path, preprocessor: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> ImageInput:
    (directory / "config.json").write_text(json.dumps(config or {}))
    if preprocessor is not None:
        (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return images.read(directory, image_size=224, channels=3)


def test_vit_stretches_to_a_square_and_rescales_though_the_file_says_nothing_of_it(tmp_path: Path) -> None:
    found = read(tmp_path, VIT)
    assert (found.resize, found.resample) == (SQUARE, "bilinear")
    assert not found.HasField("crop")
    assert found.rescale == pytest.approx(1 / 255)
    assert (list(found.mean), list(found.deviation)) == ([0.5] * 3, [0.5] * 3)


def test_deit_cuts_out_the_middle(tmp_path: Path) -> None:
    found = read(tmp_path, DEIT)
    assert (found.resize, found.crop, found.resample) == (Size(height=256, width=256), SQUARE, "bicubic")
    assert list(found.mean) == [0.485, 0.456, 0.406]


def test_timm_resizes_to_a_little_more_than_it_cuts_out(tmp_path: Path) -> None:
    found = read(tmp_path, config=TIMM)
    assert (found.resize, found.crop, found.resample) == (Size(shortest_edge=256), SQUARE, "bicubic")


def test_steps_that_are_switched_off_are_left_out(tmp_path: Path) -> None:
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    found = read(tmp_path, VIT | off)
    assert not found.HasField("resize")
    assert not found.HasField("rescale")
    assert list(found.mean) == []


def test_the_shortest_edge_keeps_the_aspect(tmp_path: Path) -> None:
    crop = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}}
    found = read(tmp_path, VIT | {"size": {"shortest_edge": 248}, "resample": "lanczos"} | crop)
    assert (found.resize, found.crop, found.resample) == (Size(shortest_edge=248), SQUARE, "lanczos")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": {"longest_edge": 224}}, "size: found .*, expected height and width, or shortest_edge"),
        ({"resample": 17}, "resample: found 17, expected one of nearest"),
        ({"image_mean": [0.5]}, r"image_mean: found \[0.5\], expected 3 numbers"),
        ({"size": 256}, "found images of 256 × 256, expected the model's 224 × 224; --image-size 256 interpolates"),
        ({"image_processor_type": "BitImageProcessor"}, "found a BitImageProcessor and no do_center_crop, resample"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text):
        read(tmp_path, VIT | changes)


@pytest.mark.parametrize(
    ("preprocessor", "resize", "crop"),
    [
        (VIT, Size(height=384, width=384), Size()),
        (VIT | {"size": 384}, Size(height=384, width=384), Size()),
        (DEIT, Size(height=439, width=439), Size(height=384, width=384)),
        (DEIT | {"size": {"shortest_edge": 256}}, Size(shortest_edge=439), Size(height=384, width=384)),
    ],
)
def test_for_larger_images_every_step_grows(
    preprocessor: dict[str, Any], resize: Size, crop: Size, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    found = images.read(tmp_path, image_size=384, channels=3, trained=224)
    assert (found.height, found.width, found.resize, found.crop) == (384, 384, resize, crop)


def test_files_for_a_third_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT | {"size": 256}))
    with pytest.raises(ExportError, match=r"found images of 256 × 256, expected the model's 384 × 384$"):
        images.read(tmp_path, image_size=384, channels=3, trained=224)


def test_gray_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="found images of 1 channels, expected 3"):
        images.read(tmp_path, image_size=28, channels=1)
