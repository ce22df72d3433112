"""The files with the golden images and texts of an artifact, for `inspect` and `verify`.

Imports neither torch nor transformers; `images.golden_images` and `text.golden_texts` compare the inputs.
"""

from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import Parse, ParseError
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from export.errors import ExportError
from protos.artifact import FILE, GOLDEN_IMAGES, GOLDEN_TEXTS, PIXEL_VALUES, image_key
from protos.manifest_pb2 import GoldenTexts


def count_images(directory: Path) -> int:
    """The number of golden images of an artifact. ExportError if the file cannot be read."""
    path = directory / GOLDEN_IMAGES
    try:
        with safe_open(path, "numpy") as tensors:
            names: list[str] = tensors.keys()
            return sum(name.endswith(f"/{FILE}") for name in names)
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path}: found no golden images ({error}), expected some: export again") from error


def images(directory: Path) -> list[tuple[bytes, NDArray[Any]]]:
    """Each image file with its pixel values (3, h, w). ExportError if there are none."""
    path = directory / GOLDEN_IMAGES
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
        numbers = range(len(tensors) // 2)
        found = [(tensors[image_key(n, FILE)].tobytes(), tensors[image_key(n, PIXEL_VALUES)]) for n in numbers]
    except (OSError, SafetensorError, KeyError) as error:
        raise ExportError(f"{path}: found no golden images ({error}), expected some: export again") from error
    if not found or any(values.dtype != np.float32 for _, values in found):
        raise ExportError(f"{path}: found no golden images in FP32, expected some: export again")
    return found


def texts(directory: Path) -> GoldenTexts:
    """The golden texts with their token ids. ExportError if there are none."""
    path = directory / GOLDEN_TEXTS
    try:
        found = Parse(path.read_text("utf-8"), GoldenTexts())
    except (OSError, ParseError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: found no golden texts ({error}), expected some: export again") from error
    if not found.texts:
        raise ExportError(f"{path}: found no golden texts, expected some: export again")
    return found


def verification_lines(account: dict[str, Any]) -> list[str]:
    """The lines about golden images and texts that `verify` prints."""
    lines = []
    if "golden_images" in account:
        lines.append(
            f"  {account['golden_images']} golden images: at most {account['pixel_error']:.2g} grey levels off"
        )
    if "golden_texts" in account:
        lines.append(f"  {account['golden_texts']} golden texts: all of them have the token ids of transformers")
    return lines
