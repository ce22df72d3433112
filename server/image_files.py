"""From the bytes of an image file to a picture in RGB, upright, as `transformers` loads it.

The header is read, and judged, before anything is decoded: a few bytes can stand for gigabytes of pixels, or for hours.
Between the two nothing stays open: what Pillow keeps of an opened file can be many times as large as the file.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server.errors import InvalidRequest
from server.metered_file import MeteredFile

# How a file begins → what reads it. Not by Image.open: of a JPEG of several pictures (MPO) that reads all headers.
READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
)
FORMATS = tuple(reader.format or "" for _, reader in READERS)
EXPECTED = "a JPEG, PNG, WebP or GIF file"
MAX_SIDE = 1 << 16  # more, and the filters of a resize alone take gigabytes
MAX_PIXELS = 50_000_000  # 200 MB decoded; twice as much while it is turned or converted
MAX_JPEG_PIXELS = 150_000_000  # decoded at half the size
# A JPEG in many scans (progressive) goes over all of its pixels once for each, and a scan takes but some 70 bytes.
MAX_SCANNED_PIXELS = 1_000_000_000
SCAN = b"\xff\xda"
# Of a JPEG, Pillow puts all parts with EXIF data together one by one, in quadratic time: cameras write one, of at most
# 64 KiB, and more in pictures behind the first or within it. Orientation is all that is wanted of it.
EXIF, MAX_EXIF_PARTS, MAX_EXIF_BYTES = b"Exif\0\0", 16, 1 << 20
PACKED, MAX_PACKED_PARTS = (b"zTXt", b"iTXt", b"iCCP"), 8  # of a PNG: each may be a megabyte when unpacked
# Bytes for each pixel while it is decoded, at the most, as measured: 4, and as many again while it is turned or
# converted; beside them the coefficients of a JPEG in scans (12.1 in CMYK), or the two canvases of a WebP and a copy.
BYTES_PER_PIXEL, WEBP_BYTES_PER_PIXEL = 12, 18

TURNS: dict[object, Image.Transpose] = {  # what EXIF calls orientation → how the picture becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded: its size then, and how much memory decoding takes."""

    width: int
    height: int
    decoding_bytes: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(file: bytes, field: str = "image") -> Header:
    """InvalidRequest if the file is no image, or one that would take too much time or memory."""
    picture = _opened(file, field)
    each = WEBP_BYTES_PER_PIXEL if isinstance(picture, WebPImageFile) else BYTES_PER_PIXEL
    return Header(*picture.size, decoding_bytes=each * math.prod(picture.size))


def decode(file: bytes, field: str = "image") -> Image.Image:
    """The picture in RGB, upright. InvalidRequest as by `read_header`, or if it is cut off or broken."""
    picture: Image.Image = _opened(file, field)
    try:
        picture.load()
        turn = TURNS.get(_orientation(picture))
        if turn is not None:
            picture = picture.transpose(turn)  # what was opened is let go of, with all that it holds
        return _rgb(picture)
    except Exception as error:
        raise _broken(field, error) from None


def _opened(file: bytes, field: str) -> ImageFile:
    """The picture, its pixels still to be decoded."""
    if not file:
        raise InvalidRequest(field, "no bytes", EXPECTED)
    reader = next((reader for start, reader in READERS if file.startswith(start)), None)
    if reader is None:
        raise InvalidRequest(field, f"{len(file)} bytes that are no image", EXPECTED)
    _check_parts(reader, file, field)
    try:
        picture = reader(MeteredFile(file))
    except Exception as error:
        raise _broken(field, error) from None
    _check_size(picture, field)
    if isinstance(picture, JpegImageFile):
        _check_jpeg(picture, file, field)
        if math.prod(picture.size) > MAX_PIXELS:
            picture.draft(None, (picture.width // 2, picture.height // 2))
    return picture


def _check_parts(reader: type[ImageFile], file: bytes, field: str) -> None:
    """Refuse what would take long to read before the size of the picture is known."""
    if reader is JpegImageFile and (parts := file.count(EXIF)) > MAX_EXIF_PARTS:
        raise InvalidRequest(field, f"{parts} parts with EXIF data", f"at most {MAX_EXIF_PARTS}")
    if reader is PngImageFile and (parts := sum(map(file.count, PACKED))) > MAX_PACKED_PARTS:
        raise InvalidRequest(field, f"{parts} parts with packed texts and profiles", f"at most {MAX_PACKED_PARTS}")


def _orientation(picture: Image.Image) -> object:
    """What EXIF data, or a text in their place, say. Nothing else of them is looked at: they can be anything."""
    size = max(len(picture.info.get(name, b"")) for name in ("exif", "Raw profile type exif"))
    if size > MAX_EXIF_BYTES:
        raise ValueError(f"{size} bytes of EXIF data, more than {MAX_EXIF_BYTES}")
    return picture.getexif().get(ExifTags.Base.Orientation)


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


def _broken(field: str, error: Exception) -> Exception:
    """Whatever Pillow raises on a file is the file's fault: broken data comes as a dozen kinds of exceptions."""
    if isinstance(error, MemoryError):
        return error
    return InvalidRequest(field, f"a broken image ({error})", EXPECTED)
