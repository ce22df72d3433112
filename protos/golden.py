"""Reads the golden inputs of an artifact: a few inputs of a model, and the results of its source.

The server checks them before it serves a model, and `python -m export verify` checks them anywhere. The manifest has
their numbers, so that none of them can be missing.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from protos.artifact import (
    FILE,
    GOLDEN_IMAGES,
    GOLDEN_TENSORS,
    GOLDEN_TEXTS,
    INPUT,
    PIXEL_VALUES,
    image_key,
    parse_golden_key,
)
from protos.manifest import ArtifactError
from protos.manifest_pb2 import GoldenTexts, ImageInput, Manifest
from protos.strict_json import JsonError, parse

EXPORT_AGAIN = "export again"


@dataclass(frozen=True)
class GoldenCase:
    """Inputs of a graph, and the outputs of PyTorch for them in fp32."""

    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    outputs: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class GoldenImage:
    """An image file, and the pixel values (3, h, w) that transformers computed from it."""

    file: bytes
    pixel_values: NDArray[np.float32]


def read_cases(directory: Path, manifest: Manifest) -> list[GoldenCase]:
    """The golden cases in order. ArtifactError if they are not as many as the manifest says, or not complete."""
    path, count = directory / GOLDEN_TENSORS, manifest.golden.cases
    cases: dict[int, GoldenCase] = {}
    with _named_errors(path):
        for key, tensor in load_file(path).items():
            number, side, name = parse_golden_key(key)
            case = cases.setdefault(number, GoldenCase())
            (case.inputs if side == INPUT else case.outputs)[name] = tensor
    _check_count(path, "cases", len(cases), count)
    for number in range(count):
        if number not in cases or not cases[number].inputs or not cases[number].outputs:
            raise ArtifactError(f"{path}: case {number}: found no inputs or no outputs, expected both: {EXPORT_AGAIN}")
        for name, output in cases[number].outputs.items():
            if output.dtype != np.float32:
                raise ArtifactError(
                    f"{path}: case {number}: found {name} in {output.dtype}, expected float32: {EXPORT_AGAIN}"
                )
    return [cases[number] for number in range(count)]


def read_images(directory: Path, manifest: Manifest) -> list[GoldenImage]:
    """The golden images in order. ArtifactError if they are not as many as the manifest says, or of other types."""
    path, count = directory / GOLDEN_IMAGES, manifest.golden.images
    with _named_errors(path):
        tensors = load_file(path)
    _check_count(path, "images", len(tensors) / 2, count)
    images = []
    for number in range(count):
        file, pixel_values = (tensors.get(image_key(number, part)) for part in (FILE, PIXEL_VALUES))
        if file is None or pixel_values is None:
            raise ArtifactError(
                f"{path}: image {number}: found no file or no pixel values, expected both: {EXPORT_AGAIN}"
            )
        if file.dtype != np.uint8 or pixel_values.dtype != np.float32:
            found = f"a file in {file.dtype} and pixel values in {pixel_values.dtype}"
            raise ArtifactError(f"{path}: image {number}: found {found}, expected uint8 and float32: {EXPORT_AGAIN}")
        images.append(GoldenImage(file.tobytes(), pixel_values))
    return images


def read_texts(directory: Path, manifest: Manifest) -> GoldenTexts:
    """The golden texts. ArtifactError if they are not as many as the manifest says."""
    path = directory / GOLDEN_TEXTS
    with _named_errors(path):
        golden = parse(path.read_bytes(), GoldenTexts())
    _check_count(path, "texts", len(golden.texts), manifest.golden.texts)
    return golden


def grey_levels(difference: NDArray[np.float32], image: ImageInput) -> float:
    """The largest difference between pixel values (3, h, w), in grey levels of the image; infinite for NaN."""
    deviation = np.array(list(image.deviation) or [1.0] * 3).reshape(-1, 1, 1)
    rescale = image.rescale if image.HasField("rescale") else 1.0
    largest = float(np.max(np.abs(difference * deviation))) / abs(rescale) if rescale else math.inf
    return math.inf if math.isnan(largest) else largest


def _check_count(path: Path, kind: str, found: float, expected: int) -> None:
    if not expected or found != expected:
        raise ArtifactError(f"{path}: found {found:g} {kind}, expected {expected or 'at least 1'}: {EXPORT_AGAIN}")


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Translate the errors of reading a file to ArtifactError."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror or error}") from error
    except (SafetensorError, JsonError, ValueError) as error:
        raise ArtifactError(f"{path}: {error}: {EXPORT_AGAIN}") from error
