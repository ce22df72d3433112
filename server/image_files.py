"""From the bytes of an image file to a picture in RGB, upright, as `transformers` loads it.

The header is read, and judged, before anything is decoded: a few bytes can stand for gigabytes of pixels, or for hours.
"""

import io
import math

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from server.errors import InvalidRequest

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
EXPECTED = "a JPEG, PNG, WebP or GIF file"
MAX_SIDE = 1 << 16  # more, and the filters of a resize alone take gigabytes
MAX_PIXELS = 50_000_000  # 200 MB decoded; twice as much while it is turned or converted
MAX_JPEG_PIXELS = 150_000_000  # decoded at half the size
# A JPEG in many scans (progressive) goes over all of its pixels once for each, and a scan takes but some 70 bytes.
MAX_SCANNED_PIXELS = 1_000_000_000
SCAN = b"\xff\xda"


def open_image(file: bytes, field: str = "image") -> Image.Image:
    """The picture, its pixels still to be decoded. InvalidRequest if there is none, or if it is too large."""
    if not file:
        raise InvalidRequest(field, "no bytes", EXPECTED)
    try:
        picture = Image.open(io.BytesIO(file), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(field, "more pixels than any photograph has", f"at most {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise InvalidRequest(field, f"{len(file)} bytes that are no image", EXPECTED) from None
    except Exception as error:
        raise _broken(field, error) from None
    _check_size(picture, field)
    if isinstance(picture, JpegImageFile):
        _check_jpeg(picture, file, field)
    if math.prod(picture.size) > MAX_PIXELS:
        picture.draft(None, (picture.width // 2, picture.height // 2))
    return picture


def decode(picture: Image.Image, field: str = "image") -> Image.Image:
    """The picture in RGB, upright. InvalidRequest if it is cut off or broken."""
    try:
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return _rgb(picture)
    except Exception as error:
        raise _broken(field, error) from None


def _check_size(picture: Image.Image, field: str) -> None:
    width, height = picture.size
    most = MAX_JPEG_PIXELS if isinstance(picture, JpegImageFile) else MAX_PIXELS
    if not 0 < width * height <= most or max(width, height) > MAX_SIDE:
        raise InvalidRequest(field, f"{width} x {height} pixels", f"1 to {most} pixels, at most {MAX_SIDE} a side")


def _check_jpeg(picture: JpegImageFile, file: bytes, field: str) -> None:
    """Refuse what takes long, in many scans, or much memory: then the coefficients of the whole picture are kept."""
    assert picture.fp is not None, "Pillow keeps the file until the pixels are there; this is a bug"
    start = picture.fp.tell()  # of the first scan's data
    if _is_only_scan(picture, file, start):
        return
    pixels, scans = math.prod(picture.size), 1 + file.count(SCAN, start)
    if pixels > MAX_PIXELS or scans * pixels > MAX_SCANNED_PIXELS:
        found = f"{picture.width} x {picture.height} pixels in {scans} scans"
        raise InvalidRequest(field, found, f"at most {MAX_PIXELS} pixels, and {MAX_SCANNED_PIXELS} over all scans")


def _is_only_scan(picture: JpegImageFile, file: bytes, start: int) -> bool:
    """Whether the scan whose data start there has all colours: its marker stands as far back as these need."""
    has_all: bool = file.rfind(SCAN, 0, start) == start - 8 - 2 * picture.layers
    return has_all and not picture.info.get("progressive")


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow, and transformers with it, makes white of all but the 256 darkest of 65,536 greys. Taken here is the
        # upper byte, which is what Pillow takes of 16 bits in colour.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _broken(field: str, error: Exception) -> InvalidRequest:
    """Whatever Pillow raises on a file is the file's fault: broken data comes as a dozen kinds of exceptions."""
    return InvalidRequest(field, f"a broken image ({error})", EXPECTED)
