"""Image settings that the export does not support are refused by name; and settings for other sizes of images."""

import json
from pathlib import Path
from typing import Any

import pytest

from export.errors import ExportError
from export.inputs.images import golden_images
from export.inputs.images import processor as images
from protos.manifest_pb2 import Size
from tests.export.image_settings import DEIT, VIT, prepared, read
from tests.server.images.files import picture


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": {"longest_edge": 224}}, "size: found .*longest_edge.*, expected height and width, or shortest_edge"),
        ({"size": {"max_height": 224, "max_width": 224}}, "size: found .*max_height"),
        ({"size": "large"}, "transformers cannot read it: Could not convert size"),
        ({"size": {"height": 224.5, "width": 224}}, "size: found .*224.5.*, expected whole numbers"),
        ({"resample": 17}, r"resample: found 17, expected one of 0 \(nearest\), 1"),
        ({"resample": None}, "resample: found None, expected one of 0"),
        ({"resample": "bilinear"}, "resample: found 'bilinear', expected one of 0"),
        ({"image_mean": [0.5]}, r"image_mean: found \(0.5,\), expected 3 numbers"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std: found .*, expected no zero"),
        ({"rescale_factor": 0}, "rescale_factor: found 0, expected a number above 0"),
        ({"size": 256}, "found images of 256 × 256, expected the model's 224 × 224; --image-size 256 interpolates"),
        ({"do_center_crop": True, "crop_size": 200}, "found images of 200 × 200, expected the model's 224 × 224"),
        (
            {"image_processor_type": "OwnImageProcessor"},
            "found OwnImageProcessor, expected one of ViTImageProcessor, DeiT",
        ),
        ({"image_processor_type": "DPTImageProcessor"}, "found DPTImageProcessor, expected one of .*; if one of these"),
        ({"image_processor_type": "DINOv3ViTImageProcessorFast"}, "found DINOv3ViTImageProcessor, expected one of"),
        ({"feature_extractor_type": "PerceiverFeatureExtractor"}, "found PerceiverImageProcessor, expected one of"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order: found true, expected false"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": 224, "do_center_crop": True, "crop_size": 200},
            "crop_size: found .*200.*, expected 224 × 224",
        ),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 224, "width": 224}},
            "expected shortest_edge",
        ),
        ({"image_processor_type": "PoolFormerImageProcessor", "crop_pct": 0}, "crop_pct: found 0, expected"),
    ],
)
def test_unknown_settings_are_refused_by_name(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text) as refusal:
        read(tmp_path, VIT | changes)
    assert len(str(refusal.value)) < 800


def test_a_setting_that_makes_the_processor_fail_is_refused(tmp_path: Path) -> None:
    found = prepared(tmp_path, VIT | {"rescale": True}, image_size=224)  # replaces a method of the processor
    with pytest.raises(ExportError, match="ViTImageProcessor of transformers cannot work with it"):
        golden_images.make(found)


def test_a_checkpoint_without_settings_for_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"preprocessor_config.json: found none, expected it to say"):
        read(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{ nothing")
    with pytest.raises(ExportError, match=r"preprocessor_config.json: transformers cannot read it"):
        read(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    with pytest.raises(ExportError, match=r"preprocessor_config.json: transformers cannot read it") as refusal:
        read(tmp_path, config={"model_type": "unknown"})
    assert len(str(refusal.value)) < 400


def test_an_error_names_the_file_that_has_the_settings(tmp_path: Path) -> None:
    nested = {"image_processor": VIT | {"rescale_factor": 0}}
    with pytest.raises(ExportError, match=r"^processor_config.json: rescale_factor: found 0"):
        prepared(tmp_path, nested, file="processor_config.json")
    with pytest.raises(ExportError, match=r"found none \(and no image_processor in processor_config.json\)"):
        prepared(tmp_path, VIT, file="processor_config.json")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"image_std": [float("nan")] * 3}, r"^preprocessor_config.json: image_std: found .*nan"),
        ({"image_mean": [float("inf")] * 3}, r"^preprocessor_config.json: image_mean: found .*inf"),
        ({"rescale_factor": float("inf")}, r"^preprocessor_config.json: rescale_factor: found inf"),
        ({"size": {"height": 192, "width": 256}}, r"found images of 192 × 256, expected the model's 224 × 224$"),
        ({"size": {"shortest_edge": 256}}, r"found images of 256 × 256, .* 224 × 224; --image-size 256"),
    ],
)
def test_invalid_numbers_and_sizes_are_refused(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text):
        read(tmp_path, VIT | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 100_000, "do_center_crop": True, "crop_size": 224},
        {"size": {"shortest_edge": 100_000}, "do_center_crop": True, "crop_size": 224},
        {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 1e-6},
    ],
)
def test_a_resize_beyond_the_limit_of_the_server_is_refused_before_it_is_tried(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"size: found images resized to \d+ pixels, expected at most 16000000"):
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
def test_all_steps_are_scaled_for_larger_images(
    preprocessor: dict[str, Any], resize: Size, crop: Size, tmp_path: Path
) -> None:
    grown = prepared(tmp_path, preprocessor, image_size=384, trained=224)
    found = grown.image_input
    assert (found.height, found.width, found.resize, found.crop) == (384, 384, resize, crop)
    assert grown.reference(picture(90, 60)).shape == (3, 384, 384)


def test_settings_for_a_third_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found images of 256 × 256, expected the model's 384 × 384$"):
        prepared(tmp_path, VIT | {"size": 256}, image_size=384, trained=224)


def test_images_with_one_channel_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="found images of 1 channels, expected 3"):
        images.read(tmp_path, image_size=28, channels=1)
