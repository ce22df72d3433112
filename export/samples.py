"""Files of inputs that somebody chose: the user's own (`--calibrate`), or a sample that a model never saw in training.

Texts stand one on each line. Images are one file, the files of a directory, or a list of files, one on each line.
Knows nothing of models and imports no torch.
"""

import hashlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from export.errors import ExportError

MOST = 64  # inputs of a file that are looked at: the first ones
IMAGES = (".jpg", ".jpeg", ".png", ".webp")


def texts(path: Path) -> list[str]:
    """The lines of a file that are not empty. ExportError if there are none."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ExportError(f"{path}: found other bytes at {error.start}, expected text in UTF-8") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}, expected a file with a text on each line") from error
    found = [line for line in lines if line.strip()]
    if not found:
        raise ExportError(f"{path}: found no text, expected one on each line")
    return found[:MOST]


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
    """An image file in RGB. ExportError if it is none."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise ExportError(f"{path}: found no image, expected JPEG, PNG or WebP") from error
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}, expected an image") from error


def digest(path: Path) -> str:
    """sha256 over what `path` and the images it may stand for hold. ExportError if there is nothing."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror}, expected texts or images") from error
