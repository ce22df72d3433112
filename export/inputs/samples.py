"""Files of sample inputs: the user's own (`--evaluate`), or the held-out sample of a checkpoint.

A text file has one text on each line. Images are one file, the files of a directory, or a list of files, one on each
line. Knows nothing of models and imports no torch.
"""

import hashlib
import os
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from export.errors import ExportError

MOST = 64  # inputs of a file that are looked at: the first ones
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


def texts(path: Path, most: int = MOST) -> list[str]:
    """The first lines of a file that are not empty. ExportError if there are none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: found other bytes at {error.start}, expected text in UTF-8") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}, expected a file with a text on each line") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ExportError(f"{path}: found no text, expected one on each line")
    return found[:most]


def image_files(path: Path) -> list[Path]:
    """The images that `path` stands for. ExportError if it stands for none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)
        if not found:
            raise ExportError(f"{path}: found no image in it, expected files that end in {', '.join(IMAGES)}")
        return found[:MOST]
    if path.suffix.lower() in IMAGES:
        return [path]
    return [path.parent / line.strip() for line in texts(path)]


def picture(path: Path) -> Image.Image:
    """An image file upright and in RGB, as a request's is read. ExportError if it is none."""
    from export.inputs.images.steps import loaded  # brings torch with it

    try:
        return loaded(path)
    except UnidentifiedImageError as error:
        raise ExportError(f"{path}: found no image, expected JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}, expected an image") from error


def digest(path: Path) -> str:
    """sha256 over what `path` holds and, if it stands for images, over those. ExportError if there is nothing.

    Only a model knows whether lines are texts or the names of images: a line that names a file counts as an image.
    """
    try:
        files = image_files(path) if path.is_dir() else [path, *named(path)]
        return hashlib.sha256(b"".join(map(contents, files))).hexdigest()
    except OSError as error:
        raise ExportError(f"{error.filename or path}: {error.strerror}, expected texts or images") from error


def named(path: Path) -> list[Path]:
    """The files that the lines of a list name, as far as they are there."""
    if path.suffix.lower() in IMAGES:
        return []
    return [file for file in image_files(path) if os.path.isfile(file)]  # a text may be no possible name of a file


def contents(path: Path) -> bytes:
    """sha256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
