"""Files of sample inputs: the user's own (`--evaluate`), or the held-out sample of a checkpoint.

A text file has one text on each line. Images are one file, the files of a directory, or a list of files, one on each
line. Knows nothing of models and imports no torch.
"""

import hashlib
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from export.errors import ExportError
from export.sources.lfs import check_no_pointer

EXPECTED = "JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"
NO_IMAGE = "no image"
HEIC_BRANDS = (b"hei", b"hev")  # the first letters of those of HEIC, after the type of the first box
MAX_INPUTS = 64  # of a file: the first ones are used
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def texts(path: Path, limit: int = MAX_INPUTS) -> list[str]:
    """The first lines of a file that are not empty. ExportError if it has none."""
    try:
        check_no_pointer(path)
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: found other bytes at {error.start}, expected text in UTF-8") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}, expected a file with a text on each line") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ExportError(f"{path}: found no text, expected one on each line")
    return found[:limit]


def image_files(path: Path) -> list[Path]:
    """The image files that `path` names: itself, the files of a directory, or those of a list. ExportError if none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        if not found:
            raise ExportError(f"{path}: found no image in it, expected files that end in {', '.join(IMAGES)}")
        return found[:MAX_INPUTS]
    if path.suffix.lower() in IMAGES or kind_of(path) != NO_IMAGE:
        return [path]
    return [path.parent / line.strip() for line in texts(path)]


def picture(path: Path) -> Image.Image:
    """An image file, upright and in RGB, as the server reads it. ExportError if it is not an image."""
    from export.inputs.images.steps import loaded  # imports torch

    try:
        check_no_pointer(path)
        return loaded(path)
    except UnidentifiedImageError as error:
        raise ExportError(f"{path}: found {kind_of(path)}, expected {EXPECTED}") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}, expected an image") from error


def kind_of(path: Path) -> str:
    """The format of a file, for an error, also if it is not supported; NO_IMAGE for other files."""
    try:
        with path.open("rb") as file:
            start = file.read(12)
        if start[4:8] == b"ftyp" and start[8:11] in HEIC_BRANDS:
            return "a HEIC file"
        with Image.open(path) as picture:
            return f"a file in {picture.format}"
    except (OSError, Image.DecompressionBombError):
        return NO_IMAGE


def digest(path: Path) -> str:
    """sha256 over the contents of `path` and of the images that it names. ExportError if it cannot be read.

    Only the model decides whether lines are texts or file names, so here each line that names a file counts as one.
    """
    try:
        files = image_files(path) if path.is_dir() else [path, *named(path)]
        return hashlib.sha256(b"".join(map(contents, files))).hexdigest()
    except OSError as error:
        raise ExportError(f"{error.filename or path}: {error.strerror}, expected texts or images") from error


def named(path: Path) -> list[Path]:
    """The existing files that the lines of a list name."""
    if path.suffix.lower() in IMAGES:
        return []
    return [file for file in image_files(path) if os.path.isfile(file) and file != path]  # a text may not be a name


def contents(path: Path) -> bytes:
    """The sha256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
