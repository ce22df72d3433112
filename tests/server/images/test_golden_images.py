"""A model whose images are decoded differently from transformers never becomes ready; the error says why."""

import dataclasses
import shutil
import urllib.request

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as serialised

from protos.artifact import GOLDEN_IMAGES
from protos.manifest_pb2 import ImageInput, Manifest, Size
from server.artifact import read_artifact
from server.errors import BadArtifact
from server.images.golden_check import check_images
from server.images.preprocess import ImageDecoder
from tests.artifacts import change_manifest, replace_file, unlist
from tests.server.conftest import opened


@pytest.fixture(scope="module")
def artifact(artifacts):
    return read_artifact(artifacts / "tiny-vit" / "1")


def checked(artifact, **changes):
    """The check of an artifact whose manifest says something else of its images."""
    image = ImageInput()
    image.CopyFrom(artifact.manifest.image)
    for field, value in changes.items():
        image.ClearField(field)
        if isinstance(value, Size):
            getattr(image, field).CopyFrom(value)
        elif isinstance(value, list):
            getattr(image, field).extend(value)
        elif value is not None:
            setattr(image, field, value)
    manifest = Manifest()
    manifest.CopyFrom(artifact.manifest)
    manifest.image.CopyFrom(image)
    return check_images(dataclasses.replace(artifact, manifest=manifest), ImageDecoder(image))


def test_images_are_read_as_transformers_read_them(artifact):
    found = checked(artifact)
    assert found.images >= 6
    assert found.pixel_error <= 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.5, 0.5, 0.49]},
        {"mean": [0.485, 0.456, 0.406]},
        {"deviation": [0.5, 0.5, 0.52]},
        {"deviation": [5e5, 0.5, 0.5]},
        {"mean": None, "deviation": None},
        {"rescale": 1 / 250},
        {"rescale": 1.0},
        {"rescale": None},
        {"rescale": 0.0},
        {"rescale": -1 / 255},
        {"rescale": float("nan")},
        {"resample": "nearest"},
        {"resample": "lanczos"},
        {"resize": Size(height=34, width=34), "crop": Size(height=32, width=32)},
        {"resize": Size(shortest_edge=32), "crop": Size(height=32, width=32)},
        {"resize": None, "crop": Size(height=32, width=32)},
        {"resize": Size(height=31, width=31), "pad": Size(height=32, width=32)},
    ],
)
def test_any_other_preprocessing_is_refused(artifact, changes):
    reason = (
        r"golden_images.safetensors: image \d: found a pixel .* grey levels from that of transformers.*export again"
    )
    with pytest.raises(BadArtifact, match=reason):
        checked(artifact, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"resize": None}, r"image 0: image: found .* pixels, expected 32 x 32.*export again"),
        ({"resize": Size(shortest_edge=32)}, r"image 0: image: found .* pixels, expected 32 x 32: .* does not crop"),
        ({"height": 30, "width": 30, "resize": Size(height=30, width=30)}, r"found .* shape \(3, 30, 30\), expected"),
        ({"resample": "sharp"}, "image.resample: found 'sharp', expected one of nearest, "),
        ({"resize": Size(longest_edge=32)}, "image.resize: found .*longest_edge.*, expected height and width"),
        (
            {"resize": Size(height=1 << 20, width=1 << 20)},
            "image.resize: found .*, expected height and width of at most",
        ),
        ({"crop": Size(shortest_edge=32)}, "image.crop: found .*shortest_edge"),
        ({"crop": Size(height=32)}, "image.crop: found .*, expected height and width"),
        ({"mean": [0.5]}, "image.mean and image.deviation: found 1 and 3 numbers"),
        ({"deviation": [0.5, 0.5, 0.0]}, "image.deviation: found .*, expected no zero"),
        ({"height": 0}, "image: found 32 x 0 pixels"),
    ],
)
def test_steps_that_cannot_be_carried_out_are_refused_by_name(artifact, changes, said):
    with pytest.raises(BadArtifact, match=said):
        checked(artifact, **changes)


@pytest.fixture
def copy(artifacts, tmp_path):
    """An artifact to spoil."""
    return shutil.copytree(artifacts / "tiny-vit" / "1", tmp_path / "tiny-vit" / "1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.clear(), "found 0 images, expected 7: export again"),
        (lambda tensors: [tensors.pop(f"6/{part}") for part in ("file", "pixel_values")], "found 6 images, expected 7"),
        (lambda tensors: tensors.update({"7/file": tensors["6/file"]}), "found 7.5 images, expected 7"),
        (lambda tensors: tensors.update({"1/fill": tensors.pop("1/file")}), "image 1: found no file or no pixel"),
        (
            lambda tensors: tensors.update({"0/file": tensors["0/file"].astype(np.int32)}),
            "image 0: found a file in int",
        ),
        (
            lambda tensors: tensors.update({"0/pixel_values": tensors["0/pixel_values"].astype(np.float16)}),
            "image 0: .*pixel values in float16, expected uint8 and float32",
        ),
        (
            lambda tensors: tensors.update({"2/file": np.zeros(9, np.uint8)}),
            "image 2: .*found 9 bytes that are not an image",
        ),
        (
            lambda tensors: tensors.update({"0/pixel_values": np.zeros((3, 4, 4), np.float32)}),
            "image 0: found pixel values",
        ),
        (lambda tensors: tensors["3/pixel_values"].__setitem__((0, 5, 5), 9), "image 3: found a pixel .* grey levels"),
        (lambda tensors: tensors["3/pixel_values"].__setitem__((0, 5, 5), np.nan), "image 3: found a pixel inf grey"),
    ],
)
def test_golden_images_that_are_not_as_they_were_are_refused(copy, change, said):
    tensors = load_file(copy / GOLDEN_IMAGES)
    change(tensors)
    replace_file(copy, GOLDEN_IMAGES, serialised(tensors))
    artifact = read_artifact(copy)
    with pytest.raises(BadArtifact, match=said):
        check_images(artifact, ImageDecoder(artifact.manifest.image))


def test_golden_images_have_to_be_there_and_listed(copy):
    (copy / GOLDEN_IMAGES).rename(copy / "kept")
    with pytest.raises(BadArtifact, match=r"golden_images.safetensors: No such file"):
        read_artifact(copy)
    unlist(copy, GOLDEN_IMAGES)
    with pytest.raises(BadArtifact, match=r"golden_images.safetensors not among the files of the manifest"):
        read_artifact(copy)


async def test_a_damaged_preprocessing_value_keeps_a_model_from_getting_ready(copy):
    change_manifest(copy, lambda fields: fields["image"].update(deviation=[0.5, 0.25, 0.5]))
    with pytest.raises(BadArtifact, match=r"image 0: found a pixel .* grey levels from that of transformers"):
        async with opened(copy.parents[1], "tiny-vit"):
            pass


def test_the_number_of_checked_images_is_a_metric(server):
    with urllib.request.urlopen(server.url("/metrics")) as answer:
        lines = answer.read().decode().splitlines()
    of_vit = [line for line in lines if 'model="tiny-vit"' in line]
    (count,) = [line for line in of_vit if line.startswith("affinity_model_golden_inputs{")]
    (error,) = [line for line in of_vit if line.startswith("affinity_model_golden_pixel_error{")]
    assert 'kind="image"' in count
    assert float(count.split()[-1]) >= 6
    assert float(error.split()[-1]) <= 0.01
