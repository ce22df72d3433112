"""Checks at load that this machine decodes the golden images of an artifact as transformers did at export.

Errors are in grey levels of the decoded image, so that they mean the same for every model.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from protos.artifact import FILE, GOLDEN_IMAGES, PIXEL_TOLERANCE, PIXEL_VALUES, image_key
from protos.manifest_pb2 import ImageInput
from server.artifact import Artifact
from server.errors import BadArtifact, InvalidRequest
from server.images.preprocess import ImageDecoder, Pixels
from server.runtime.golden_check import GoldenInputs


@dataclass(frozen=True)
class GoldenImage:
    """An image file, and the pixel values that transformers computed from it."""

    file: bytes
    pixel_values: Pixels


def check_images(artifact: Artifact, decoder: ImageDecoder) -> GoldenInputs:
    """Decode the golden images. BadArtifact if one is refused, or differs from the export."""
    images = read_golden_images(artifact)
    errors = [_error(artifact, decoder, number, image) for number, image in enumerate(images)]
    return GoldenInputs(images=len(images), pixel_error=max(errors))


def read_golden_images(artifact: Artifact) -> list[GoldenImage]:
    """The golden images in order. BadArtifact if there are none."""
    path = artifact.path(GOLDEN_IMAGES)
    try:
        tensors = load_file(path)
        count = len(tensors) // 2
        images = [
            GoldenImage(tensors[image_key(number, FILE)].tobytes(), tensors[image_key(number, PIXEL_VALUES)])
            for number in range(count)
        ]
    except (OSError, SafetensorError, KeyError) as error:
        raise BadArtifact(f"{path}: {error}, expected golden images: export again") from error
    if not images:
        raise BadArtifact(f"{path}: found no images, expected at least one: export again")
    return images


def _error(artifact: Artifact, decoder: ImageDecoder, number: int, image: GoldenImage) -> float:
    """The largest error of a pixel, in grey levels."""
    where = f"{artifact.path(GOLDEN_IMAGES)}: image {number}"
    try:
        decoder.header(image.file)
        found = decoder.decode(image.file)
    except InvalidRequest as refusal:
        raise BadArtifact(f"{where}: {refusal}, expected the pixels of transformers: export again") from refusal
    if found.shape != image.pixel_values.shape:
        expected = f"{image.pixel_values.shape}, as transformers made them: export again"
        raise BadArtifact(f"{where}: found pixel values of shape {found.shape}, expected {expected}")
    error = grey_levels(found - image.pixel_values, artifact.manifest.image)
    if not error <= PIXEL_TOLERANCE:  # also true for NaN
        raise BadArtifact(
            f"{where}: found a pixel {error:.3g} grey levels from that of transformers, "
            f"expected at most {PIXEL_TOLERANCE:g}: the preprocessing in the manifest is another: export again"
        )
    return error


def grey_levels(difference: NDArray[np.float32], image: ImageInput) -> float:
    """The largest difference between pixel values (3, h, w), in grey levels; infinite for NaN."""
    deviation = np.array(list(image.deviation) or [1.0] * 3).reshape(-1, 1, 1)
    rescale = image.rescale if image.HasField("rescale") else 1.0
    largest = float(np.max(np.abs(difference * deviation))) / abs(rescale) if rescale else math.inf
    return math.inf if math.isnan(largest) else largest
