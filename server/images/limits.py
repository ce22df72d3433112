"""Limits on image files: on pixels, on parts, and on work that is out of proportion to either.

Each check uses the bytes of the file or its header, before pixels are decoded. All of them raise InvalidRequest.
`max_pixels` is a setting, MAX_PIXELS or less.
"""

import math
import struct
from collections.abc import Iterator

from PIL.BmpImagePlugin import BmpImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import (
    ROWSPERSTRIP,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
    TiffImageFile,
)

from server.config.settings import MAX_IMAGE_PIXELS
from server.errors import InvalidRequest

MAX_SIDE = 1 << 16  # above it, the filters of a resize alone take gigabytes
MAX_PIXELS = MAX_IMAGE_PIXELS  # of a picture that is decoded in full
HALVED = 3  # times as many pixels may a JPEG in one scan have, which is decoded at half the size
# Each scan of a progressive JPEG goes over all of its pixels, but takes only about 70 bytes of the file.
MAX_SCANNED_PIXELS = 1_000_000_000
SCAN = b"\xff\xda"
# Pillow concatenates the EXIF parts of a JPEG one by one, in quadratic time. A camera writes one part of at most 64 KiB
# for the picture, and one for each further picture in the file. Only the orientation is used.
EXIF, MAX_EXIF_PARTS, MAX_EXIF_BYTES = b"Exif\0\0", 16, 1 << 20
PACKED, MAX_PACKED_PARTS = (b"zTXt", b"iTXt", b"iCCP"), 8  # of a PNG: each can have a megabyte when unpacked
# Pillow unpacks the runs of equal pixels in a BMP in Python, pixel by pixel.
RUNS, MAX_PIXELS_IN_RUNS, FREE_RUN_BYTES = (1, 2), 2_100_000, 1 << 16
# Each strip or tile of a TIFF takes about 400 bytes of memory before the size of the picture is known. Strips can
# overlap in the file, and each can be as large as the file. TIFF_COMPRESSIONS are those that are read, by Pillow's
# names: all others can allocate memory out of proportion to the picture.
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"MM*\0", b"II\0*")
MAX_STRIPS, MAX_TIFF_PARTS, FREE_TILE_PIXELS = 1 << 15, 1 << 10, 1 << 22
TIFF_COMPRESSIONS = (
    "raw",
    "tiff_ccitt",
    "group3",
    "group4",
    "tiff_lzw",
    "jpeg",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "packbits",
)


# ---- checks of the bytes, before Pillow reads them


def check_parts(reader: type[ImageFile], file: bytes, field: str) -> None:
    """Refuse files that would take too much time or memory before the size of the picture is known."""
    if reader is JpegImageFile and (parts := file.count(EXIF)) > MAX_EXIF_PARTS:
        raise InvalidRequest(field, f"{parts} parts with EXIF data", f"at most {MAX_EXIF_PARTS}")
    if reader is PngImageFile and (parts := sum(map(file.count, PACKED))) > MAX_PACKED_PARTS:
        raise InvalidRequest(field, f"{parts} parts with packed texts and profiles", f"at most {MAX_PACKED_PARTS}")
    if reader is TiffImageFile:
        _check_directory(file, field)


def _check_directory(file: bytes, field: str) -> None:
    """Refuse a TIFF whose first directory has too many entries, strips or tiles."""
    try:
        entries, counts = _first_directory(file)
    except struct.error:
        raise InvalidRequest(field, "a TIFF file that ends before its directory", "a whole one") from None
    if entries > MAX_TIFF_PARTS:
        raise InvalidRequest(field, f"{entries} entries in a TIFF file's directory", f"at most {MAX_TIFF_PARTS}")
    strips = max(counts, default=0)
    if strips > MAX_STRIPS:
        raise InvalidRequest(field, f"{strips} strips or tiles", f"at most {MAX_STRIPS}")


def _first_directory(file: bytes) -> tuple[int, list[int]]:
    """The number of entries in the first directory of a TIFF, and the numbers of offsets of strips and of tiles."""
    order = "<" if file[:2] == b"II" else ">"
    big = 43 in file[2:4]  # BigTIFF, with offsets of eight bytes
    start, number, entry = ("Q", "Q", "HHQ8x") if big else ("L", "H", "HHL4x")
    (offset,) = struct.unpack_from(order + start, file, 8 if big else 4)
    if offset > len(file):
        raise struct.error
    (entries,) = struct.unpack_from(order + number, file, offset)
    first = offset + struct.calcsize(order + number)
    count = min(entries, MAX_TIFF_PARTS)
    step = struct.calcsize(order + entry)
    found = (struct.unpack_from(order + entry, file, first + i * step) for i in range(count))
    return entries, [count for tag, _, count in found if tag in (STRIPOFFSETS, TILEOFFSETS)]


def has_runs(file: bytes) -> bool:
    """Whether a BMP is compressed as runs of equal pixels."""
    return len(file) >= 34 and file[30:34] in (struct.pack("<L", kind) for kind in RUNS)


# ---- checks of the header


def check_size(picture: ImageFile, field: str, max_pixels: int) -> None:
    """Refuse pictures with too many pixels."""
    width, height = picture.size
    if isinstance(picture, JpegImageFile):
        max_pixels *= HALVED
    if not 0 < width * height <= max_pixels or max(width, height) > MAX_SIDE:
        raise InvalidRequest(
            field, f"{width} x {height} pixels", f"1 to {max_pixels} pixels, at most {MAX_SIDE} a side"
        )


def check_work(picture: ImageFile, file: bytes, field: str, max_pixels: int) -> None:
    """Refuse pictures that take time or memory out of proportion to their pixels."""
    if isinstance(picture, JpegImageFile):
        _check_jpeg(picture, file, field, max_pixels)
    if isinstance(picture, BmpImageFile) and has_runs(file):
        _check_runs(picture, file, field)
    if isinstance(picture, TiffImageFile):
        _check_tiff(picture, file, field)


def _check_jpeg(picture: JpegImageFile, file: bytes, field: str, max_pixels: int) -> None:
    """Refuse too many scans, and too many pixels in several scans: all of their coefficients are kept in memory."""
    assert picture.fp is not None, "Pillow keeps the file open until the pixels are decoded; this is a bug"
    start = picture.fp.tell()  # of the first scan's data
    if _is_only_scan(picture, file, start):
        return
    pixels, scans = math.prod(picture.size), 1 + file.count(SCAN, start)
    if pixels > max_pixels or scans * pixels > MAX_SCANNED_PIXELS:
        found = f"{picture.width} x {picture.height} pixels in {scans} scans"
        raise InvalidRequest(field, found, f"at most {max_pixels} pixels, and {MAX_SCANNED_PIXELS} over all scans")


def _is_only_scan(picture: JpegImageFile, file: bytes, start: int) -> bool:
    """Whether the scan whose data begin at `start` has all colours: then its header has just this length."""
    has_all: bool = file.rfind(SCAN, 0, start) == start - 8 - 2 * picture.layers
    return has_all and not picture.info.get("progressive")


def _check_runs(picture: BmpImageFile, file: bytes, field: str) -> None:
    """Refuse a BMP in runs with too many pixels, or with too many runs without pixels."""
    pixels = math.prod(picture.size)
    if pixels > MAX_PIXELS_IN_RUNS or len(file) > pixels + pixels // 4 + FREE_RUN_BYTES:
        found = f"{pixels} pixels in runs of {len(file)} bytes"
        raise InvalidRequest(field, found, f"at most {MAX_PIXELS_IN_RUNS} pixels, and little more than a byte for each")


def _check_tiff(picture: TiffImageFile, file: bytes, field: str) -> None:
    """Refuse compressions that are not known to be harmless, overlapping strips, and very large tiles."""
    compression = picture.info.get("compression")
    if compression not in TIFF_COMPRESSIONS:
        known = ", ".join(TIFF_COMPRESSIONS)
        raise InvalidRequest(field, f"a TIFF file in compression {compression}", f"one of {known}")
    largest = max(_tile_pixels(picture))
    max_pixels = max(math.prod(picture.size), FREE_TILE_PIXELS)
    if largest > max_pixels:
        raise InvalidRequest(field, f"tiles of {largest} pixels", f"at most {max_pixels}")
    packed = sum(_integers(picture, STRIPBYTECOUNTS)) + sum(_integers(picture, TILEBYTECOUNTS))
    if compression != "raw" and packed > 2 * len(file):
        raise InvalidRequest(
            field, f"{packed} bytes in strips or tiles of a file of {len(file)}", "no more than it has"
        )
    if compression == "jpeg" and (scans := file.count(SCAN)) * largest > MAX_SCANNED_PIXELS:
        raise InvalidRequest(field, f"{scans} scans of {largest} pixels", f"{MAX_SCANNED_PIXELS} over all scans")


def _tile_pixels(picture: TiffImageFile) -> Iterator[int]:
    """The pixels that are unpacked at once: those of a tile, or of a strip, which is no larger than the picture."""
    if TILEWIDTH in picture.tag_v2 or TILELENGTH in picture.tag_v2:
        yield max(_integers(picture, TILEWIDTH), default=0) * max(_integers(picture, TILELENGTH), default=0)
    rows = max(_integers(picture, ROWSPERSTRIP), default=picture.height)
    yield min(math.prod(picture.size), rows * max(picture.size))


def _integers(picture: TiffImageFile, tag: int) -> list[int]:
    """The integers among the values of an entry."""
    values = picture.tag_v2.get(tag, ())
    values = values if isinstance(values, tuple) else (values,)
    return [value for value in values if isinstance(value, int)]
