"""Checks at load that this machine decodes the golden images of an artifact as transformers did at export.

Errors are in grey levels of the decoded image, so that they mean the same for every model.
"""

from protos.artifact import GOLDEN_IMAGES, PIXEL_TOLERANCE
from protos.golden import GoldenImage, grey_levels
from server.artifact import Artifact
from server.errors import BadArtifact, InvalidRequest
from server.images.preprocess import ImageDecoder
from server.runtime.golden_check import PreprocessingParity


def check_images(artifact: Artifact, decoder: ImageDecoder) -> PreprocessingParity:
    """Decode the golden images. BadArtifact if one is refused, or differs from the export."""
    images = artifact.golden_images()
    errors = [_error(artifact, decoder, number, image) for number, image in enumerate(images)]
    return PreprocessingParity(images=len(images), pixel_error=max(errors))


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
