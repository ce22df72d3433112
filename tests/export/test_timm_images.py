"""Image settings in the layout of timm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from export.errors import ExportError
from export.inputs.images import steps
from protos.manifest_pb2 import ImageInput, Size
from server.images.preprocess import ImageDecoder
from tests.export.image_settings import SQUARE, TIMM, read
from tests.server.images.files import file_of


def test_timm_resizes_by_the_crop_percentage_and_crops(tmp_path: Path) -> None:
    found = read(tmp_path, config=TIMM)
    assert (found.resize, found.crop, found.resample) == (Size(shortest_edge=256), SQUARE, "bicubic")


def test_older_files_of_timm_have_the_settings_at_the_top_level(tmp_path: Path) -> None:
    older = {"architecture": "mixer_b16_224", "input_size": [3, 224, 224], **TIMM["pretrained_cfg"]}  # type: ignore[dict-item]
    assert read(tmp_path, config=older) == read(tmp_path, config=TIMM)


def test_missing_settings_have_the_defaults_of_timm(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("interpolation", "crop_pct", "crop_mode", "mean", "std", "input_size"))
    found = read(tmp_path, config={"architecture": "mixer_b16_224", "pretrained_cfg": nulls})
    assert (found.resize, found.resample) == (Size(shortest_edge=256), "bicubic")
    assert list(found.mean) == [0.485, 0.456, 0.406]


def timm(**changes: Any) -> dict[str, Any]:
    return TIMM | {"pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}}  # type: ignore[dict-item]


def test_crop_mode_squash_resizes_both_sides(tmp_path: Path) -> None:
    found = read(
        tmp_path, config=timm(crop_mode="squash", crop_pct=0.9, fixed_input_size=True, test_input_size=[3, 288, 288])
    )
    assert (found.resize, found.crop) == (Size(height=248, width=248), SQUARE)


@pytest.mark.parametrize(("more", "offset"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_the_offset_of_the_crop_is_rounded_half_to_even(more: int, offset: int) -> None:
    """Like torchvision's CenterCrop; transformers rounds down."""
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
