"""The steps in the manifest give the pixel values of the checkpoint's own image processor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from export.errors import ExportError
from export.inputs.images import golden_images, steps
from export.inputs.images.processor_table import PROCESSORS
from protos.golden import grey_levels
from protos.manifest_pb2 import Size
from server.errors import InvalidRequest
from server.images.preprocess import ImageDecoder
from tests.export.image_settings import DEIT, SQUARE, VIT, prepared, read
from tests.server.images.files import FILES, file_of, picture

KINDS = (
    "grey with a transparent grey",
    "turned",
    "palette",
    "palette with transparency",
    "transparent gif",
    "alpha",
    "grey",
    "cmyk",
)
SIZES = [(90, 40), (33, 57), (1, 1), (301, 7), (32, 32), (5, 8), (31, 64)]
NAMED = {
    "a number is a square": {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 3},
    "a number is the shortest edge": {"image_processor_type": "CLIPImageProcessor", "size": 36, "crop_size": 32},
    "an old name": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32},
    "a fast name": {"image_processor_type": "BitImageProcessorFast", "size": 40, "crop_size": 32, "resample": 1},
    "nulls": {"image_processor_type": "ViTImageProcessorFast", "size": 32, "do_center_crop": None, "crop_size": None},
    "a crop with an odd margin": {
        "image_processor_type": "ViTImageProcessor",
        "size": 41,
        "do_center_crop": True,
        "crop_size": 32,
    },
    "a crop larger than the image": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"shortest_edge": 21},
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
    },
    "both edges": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 40, "longest_edge": 500},
        "crop_size": 32,
    },
    "padding": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 30, "width": 25},
        "do_pad": True,
        "pad_size": {"height": 32, "width": 32},
    },
    "no resizing": {"image_processor_type": "DeiTImageProcessor", "do_resize": False, "crop_size": 32},
    "no rescaling": {
        "image_processor_type": "ViTImageProcessor",
        "size": 32,
        "do_rescale": False,
        "do_normalize": False,
    },
    "one mean for all channels": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": 0.4,
    },
    "another scale": {"image_processor_type": "ViTImageProcessor", "size": 32, "rescale_factor": 1 / 127.5},
    "pool": {"image_processor_type": "PoolFormerImageProcessor", "size": 32, "crop_size": 32, "crop_pct": 0.8},
    "pool, height and width": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": {"height": 32, "width": 40},
        "crop_size": 32,
        "crop_pct": 0.9,
    },
    "pool without a fraction": {
        "image_processor_type": "PoolFormerImageProcessor",
        "size": 40,
        "crop_size": 32,
        "crop_pct": None,
    },
    "convnext crops": {"image_processor_type": "ConvNextImageProcessor", "size": 32, "crop_pct": 0.7},
    "levit enlarges": {"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32},
    "levit stretches": {
        "image_processor_type": "LevitImageProcessor",
        "size": {"height": 36, "width": 33},
        "crop_size": 32,
    },
    "efficientnet with an offset": {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 32, "width": 32},
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "include_top": True,
    },
    "a removed class": {
        "image_processor_type": "ViTHybridImageProcessor",
        "size": {"shortest_edge": 40},
        "crop_size": 32,
    },
    "mobilevit in red, green, blue": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": 40,
        "crop_size": 32,
        "do_flip_channel_order": False,
    },
}
DEFAULTS = {  # every class of the table, with the fewest settings for images of 32 × 32
    name: {"image_processor_type": name, "size": 32, "crop_size": 32, "do_flip_channel_order": False}
    for name in PROCESSORS
    if name != "SiglipImageProcessor"  # a number gives images of several sizes
}


def test_the_steps_of_vit(tmp_path: Path) -> None:
    found = read(tmp_path, VIT)
    assert (found.resize, found.resample) == (SQUARE, "bilinear")
    assert not found.HasField("crop")
    assert found.rescale == pytest.approx(1 / 255)
    assert (list(found.mean), list(found.deviation)) == ([0.5] * 3, [0.5] * 3)


def test_the_steps_of_deit(tmp_path: Path) -> None:
    found = read(tmp_path, DEIT)
    assert (found.resize, found.crop, found.resample) == (Size(height=256, width=256), SQUARE, "bicubic")
    assert list(found.mean) == [0.485, 0.456, 0.406]


def test_disabled_steps_are_left_out(tmp_path: Path) -> None:
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    found = read(tmp_path, VIT | off)
    assert not found.HasField("resize")
    assert not found.HasField("rescale")
    assert list(found.mean) == []


@pytest.mark.parametrize("settings", [*NAMED.values(), *DEFAULTS.values()], ids=[*NAMED, *DEFAULTS])
def test_the_steps_give_the_pixel_values_of_the_image_processor(settings: dict[str, Any], tmp_path: Path) -> None:
    found = prepared(tmp_path, settings, image_size=32)
    decoder, compared = ImageDecoder(found.image_input), 0
    for file in [*(file_of(picture(*size)) for size in SIZES), *(FILES[kind] for kind in KINDS)]:
        expected = found.reference(steps.loaded(file))
        if expected.shape != (3, 32, 32):
            with pytest.raises(ExportError, match="expected 32 × 32"):
                steps.pixel_values(steps.loaded(file), found.image_input)
            with pytest.raises(InvalidRequest, match="expected 32 x 32"):
                decoder.decode(file)
            continue
        for pixels in (steps.pixel_values(steps.loaded(file), found.image_input), decoder.decode(file)):
            assert grey_levels(pixels - expected, found.image_input) <= 1e-3
        compared += 1
    assert compared


def test_the_model_type_selects_the_processor_if_the_file_names_none(tmp_path: Path) -> None:
    settings = {"size": 32, "crop_size": 32}
    deit = prepared(tmp_path / "deit", settings, {"model_type": "deit"}, image_size=32).image_input
    vit = prepared(tmp_path / "vit", settings, {"model_type": "vit"}, image_size=32).image_input
    assert (deit.resample, deit.HasField("crop")) == ("bicubic", True)
    assert (vit.resample, vit.HasField("crop")) == ("bilinear", False)


def test_settings_in_processor_config_take_precedence(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 0}}
    found = prepared(tmp_path, nested, image_size=32, file="processor_config.json").image_input
    assert (found.resize, found.resample) == (Size(height=32, width=32), "nearest")


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "ViTImageProcessor"])
def test_a_transparent_colour_is_white_only_for_processors_that_convert_to_rgb(name: str, tmp_path: Path) -> None:
    found = prepared(tmp_path, {"image_processor_type": name, "size": 32, "crop_size": 32}, image_size=32)
    file = FILES["palette with transparency"]
    expected = found.reference(steps.loaded(file))
    shown = steps.loaded(file)
    del shown.info["transparency"]
    assert np.array_equal(expected, found.reference(shown)) == (name == "ViTImageProcessor")
    assert grey_levels(ImageDecoder(found.image_input).decode(file) - expected, found.image_input) <= 1e-3


def test_golden_images_are_of_many_kinds_and_reproducible(tmp_path: Path) -> None:
    found = prepared(tmp_path, VIT | {"size": 32}, image_size=32)
    contents = golden_images.make(found)
    tensors = load(contents)
    assert contents == golden_images.make(found)
    assert len(tensors) == 2 * len(golden_images.files(found.image_input)) >= 12
    assert {tensors[f"{number}/pixel_values"].shape for number in range(len(tensors) // 2)} == {(3, 32, 32)}


@pytest.mark.parametrize(
    "settings",
    [
        {"do_resize": False},
        {"size": {"shortest_edge": 32}},
        {"size": 32},
        {"do_resize": False, "do_pad": True, "pad_size": {"height": 32, "width": 32}},
    ],
)
def test_golden_images_have_sizes_that_the_model_accepts(settings: dict[str, Any], tmp_path: Path) -> None:
    found = prepared(tmp_path, {"image_processor_type": "ViTImageProcessor"} | settings, image_size=32)
    assert len(load(golden_images.make(found))) >= 12


def test_the_export_fails_if_the_steps_differ_from_the_processor(tmp_path: Path) -> None:
    found = prepared(tmp_path, VIT | {"size": 32}, image_size=32)
    found.image_input.resample = "nearest"
    with pytest.raises(ExportError, match="the image processor and the manifest's steps differ on a grey image"):
        golden_images.make(found)
