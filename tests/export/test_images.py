"""What the manifest says of an image is what the checkpoint's own image processor does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from export.errors import ExportError
from export.inputs.images import golden_images, steps
from export.inputs.images import processor as images
from export.inputs.images.processor import Preprocessing
from export.inputs.images.processor_table import PROCESSORS
from protos.manifest_pb2 import ImageInput, Size
from server.errors import InvalidRequest
from server.images.preprocess import ImageDecoder
from tests.server.images.files import FILES, file_of, picture

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
    """The preprocessing of a checkpoint with such files, which lie in a directory of their own."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "vit"} if config is None else config))
    if preprocessor is not None:
        (directory / file).write_text(json.dumps(preprocessor))
    return images.read(directory, image_size=image_size, channels=3, trained=trained)


def read(
    directory: Path, preprocessor: dict[str, Any] | None = None, config: dict[str, Any] | None = None
) -> ImageInput:
    return prepared(directory, preprocessor, config).manifest


def test_vit_resizes_to_a_square_and_rescales_by_default(tmp_path: Path) -> None:
    found = read(tmp_path, VIT)
    assert (found.resize, found.resample) == (SQUARE, "bilinear")
    assert not found.HasField("crop")
    assert found.rescale == pytest.approx(1 / 255)
    assert (list(found.mean), list(found.deviation)) == ([0.5] * 3, [0.5] * 3)


def test_deit_crops_the_centre(tmp_path: Path) -> None:
    found = read(tmp_path, DEIT)
    assert (found.resize, found.crop, found.resample) == (Size(height=256, width=256), SQUARE, "bicubic")
    assert list(found.mean) == [0.485, 0.456, 0.406]


def test_steps_that_are_switched_off_are_left_out(tmp_path: Path) -> None:
    off = {"do_resize": False, "do_rescale": False, "do_normalize": False}
    found = read(tmp_path, VIT | off)
    assert not found.HasField("resize")
    assert not found.HasField("rescale")
    assert list(found.mean) == []


# ---- against the processors themselves, and the server's decoder

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
    "a crop of an odd rest": {
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
    "grey levels as they are": {
        "image_processor_type": "ViTImageProcessor",
        "size": 32,
        "do_rescale": False,
        "do_normalize": False,
    },
    "one mean for all": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": 0.4,
    },
    "another scale": {"image_processor_type": "ViTImageProcessor", "size": 32, "rescale_factor": 1 / 127.5},
    "pool": {"image_processor_type": "PoolFormerImageProcessor", "size": 32, "crop_size": 32, "crop_pct": 0.8},
    "pool, two sides": {
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
    "removed": {"image_processor_type": "ViTHybridImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
    "mobilevit in red, green, blue": {
        "image_processor_type": "MobileViTImageProcessor",
        "size": 40,
        "crop_size": 32,
        "do_flip_channel_order": False,
    },
}
DEFAULTS = {  # every class of the table, with as little said as makes images of 32 pixels a side
    name: {"image_processor_type": name, "size": 32, "crop_size": 32, "do_flip_channel_order": False}
    for name in PROCESSORS
    if name != "SiglipImageProcessor"  # makes images of several sizes of a number
}


@pytest.mark.parametrize("settings", [*NAMED.values(), *DEFAULTS.values()], ids=[*NAMED, *DEFAULTS])
def test_images_are_prepared_as_the_image_processor_prepares_them(settings: dict[str, Any], tmp_path: Path) -> None:
    found = prepared(tmp_path, settings, image_size=32)
    decoder, compared = ImageDecoder(found.manifest), 0
    for file in [*(file_of(picture(*size)) for size in SIZES), *(FILES[kind] for kind in KINDS)]:
        expected = found.reference(steps.loaded(file))
        if expected.shape != (3, 32, 32):
            with pytest.raises(ExportError, match="expected 32 × 32"):
                steps.pixel_values(steps.loaded(file), found.manifest)
            with pytest.raises(InvalidRequest, match="expected 32 x 32"):
                decoder.decode(file)
            continue
        for pixels in (steps.pixel_values(steps.loaded(file), found.manifest), decoder.decode(file)):
            assert steps.grey_levels(pixels - expected, found.manifest) <= 1e-3
        compared += 1
    assert compared


def test_the_processor_of_the_models_type_counts_where_the_file_names_none(tmp_path: Path) -> None:
    settings = {"size": 32, "crop_size": 32}
    deit = prepared(tmp_path / "deit", settings, {"model_type": "deit"}, image_size=32).manifest
    vit = prepared(tmp_path / "vit", settings, {"model_type": "vit"}, image_size=32).manifest
    assert (deit.resample, deit.HasField("crop")) == ("bicubic", True)
    assert (vit.resample, vit.HasField("crop")) == ("bilinear", False)


def test_settings_within_processor_config_go_first(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(VIT))
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 0}}
    found = prepared(tmp_path, nested, image_size=32, file="processor_config.json").manifest
    assert (found.resize, found.resample) == (Size(height=32, width=32), "nearest")


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "ViTImageProcessor"])
def test_a_transparent_colour_is_white_only_for_processors_that_convert(name: str, tmp_path: Path) -> None:
    found = prepared(tmp_path, {"image_processor_type": name, "size": 32, "crop_size": 32}, image_size=32)
    file = FILES["palette with transparency"]
    expected = found.reference(steps.loaded(file))
    shown = steps.loaded(file)
    del shown.info["transparency"]
    assert np.array_equal(expected, found.reference(shown)) == (name == "ViTImageProcessor")
    assert steps.grey_levels(ImageDecoder(found.manifest).decode(file) - expected, found.manifest) <= 1e-3


# ---- refusals


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


def test_a_setting_that_the_processor_cannot_work_with_is_refused_when_it_is_tried(tmp_path: Path) -> None:
    found = prepared(tmp_path, VIT | {"rescale": True}, image_size=224)  # takes the place of a method
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
def test_numbers_that_are_none_and_sizes_that_do_not_fit_are_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
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
def test_a_resize_that_the_server_would_not_do_is_refused_before_it_takes_all_memory(
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
    found = grown.manifest
    assert (found.height, found.width, found.resize, found.crop) == (384, 384, resize, crop)
    assert grown.reference(picture(90, 60)).shape == (3, 384, 384)


def test_files_for_a_third_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found images of 256 × 256, expected the model's 384 × 384$"):
        prepared(tmp_path, VIT | {"size": 256}, image_size=384, trained=224)


def test_gray_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ExportError, match="found images of 1 channels, expected 3"):
        images.read(tmp_path, image_size=28, channels=1)


# ---- timm's layout


def test_timm_resizes_to_a_little_more_than_the_crop(tmp_path: Path) -> None:
    found = read(tmp_path, config=TIMM)
    assert (found.resize, found.crop, found.resample) == (Size(shortest_edge=256), SQUARE, "bicubic")


def test_timms_older_files_have_the_settings_at_the_top_level(tmp_path: Path) -> None:
    older = {"architecture": "mixer_b16_224", "input_size": [3, 224, 224], **TIMM["pretrained_cfg"]}  # type: ignore[dict-item]
    assert read(tmp_path, config=older) == read(tmp_path, config=TIMM)


def test_missing_settings_of_timm_have_its_defaults(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("interpolation", "crop_pct", "crop_mode", "mean", "std", "input_size"))
    found = read(tmp_path, config={"architecture": "mixer_b16_224", "pretrained_cfg": nulls})
    assert (found.resize, found.resample) == (Size(shortest_edge=256), "bicubic")
    assert list(found.mean) == [0.485, 0.456, 0.406]


def timm(**changes: Any) -> dict[str, Any]:
    return TIMM | {"pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}}  # type: ignore[dict-item]


def test_timm_can_squash_instead_of_cropping(tmp_path: Path) -> None:
    found = read(
        tmp_path, config=timm(crop_mode="squash", crop_pct=0.9, fixed_input_size=True, test_input_size=[3, 288, 288])
    )
    assert (found.resize, found.crop) == (Size(height=248, width=248), SQUARE)


@pytest.mark.parametrize(("more", "offset"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_timm_rounds_half_a_pixel_of_the_crops_offset_to_the_even_side(more: int, offset: int) -> None:
    """As torchvision's CenterCrop does; transformers drops it."""
    image = ImageInput(
        height=8, width=8, resize=Size(height=8 + more, width=8 + more), resample="nearest", crop_half_to_even=True
    )
    image.crop.CopyFrom(Size(height=8, width=8))
    rows = Image.fromarray(np.repeat(np.arange(8 + more, dtype=np.uint8)[:, None], 8 + more, 1)).convert("RGB")
    for pixels in (steps.pixel_values(rows, image), ImageDecoder(image).decode(file_of(rows))):
        assert pixels[0, 0, 0] == offset


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"crop_mode": "border"}, "crop_mode: found 'border', expected one of center, squash"),
        ({"interpolation": "random"}, "interpolation: found 'random', expected one of nearest"),
        ({"crop_pct": 1.2}, "crop_pct: found 1.2, expected more than 0 and at most 1"),
        ({"crop_pct": "1"}, "crop_pct: found '1', expected a number"),
        ({"mean": [0.5, 0.5]}, r"mean: found \[0.5, 0.5\], expected 3 numbers"),
        ({"input_size": 224}, r"input_size: found 224, expected the model's"),
        ({"crop_pct": 1e-5}, "crop_pct: found 1e-05, which resizes images to 22400000 pixels a side"),
        ({"std": [0, 0.5, 0.5]}, "std: found .*, expected no zero"),
        ({"mean": [float("nan")] * 3}, "mean: found nan, expected a number"),
        ({"input_size": [3, 256, 256]}, r"input_size: found \[3, 256, 256\], expected the model's \[3, 224, 224\]"),
    ],
)
def test_unknown_settings_of_timm_are_refused_by_name(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=text):
        read(tmp_path, config=timm(**changes))


# ---- golden images


def test_golden_images_are_of_many_kinds_and_the_same_each_time(tmp_path: Path) -> None:
    found = prepared(tmp_path, VIT | {"size": 32}, image_size=32)
    contents = golden_images.make(found)
    tensors = load(contents)
    assert contents == golden_images.make(found)
    assert len(tensors) == 2 * len(golden_images.files(found.manifest)) >= 12
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
def test_golden_images_have_sizes_that_the_model_takes(settings: dict[str, Any], tmp_path: Path) -> None:
    found = prepared(tmp_path, {"image_processor_type": "ViTImageProcessor"} | settings, image_size=32)
    assert len(load(golden_images.make(found))) >= 12


def test_an_export_fails_if_the_steps_differ_from_the_processor(tmp_path: Path) -> None:
    found = prepared(tmp_path, VIT | {"size": 32}, image_size=32)
    found.manifest.resample = "nearest"
    with pytest.raises(ExportError, match="the image processor and the manifest's steps differ on a grey image"):
        golden_images.make(found)
