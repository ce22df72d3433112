"""What an image file may ask for: pixels, parts, and work that is not in proportion to either.

Each check is made on the file's bytes or on its header, before pixels are decoded. All raise InvalidRequest.
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

from server.errors import InvalidRequest

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
# Runs of equal pixels in a BMP are unpacked by Python, pixel by pixel.
RUNS, MAX_PIXELS_IN_RUNS, FREE_RUN_BYTES = (1, 2), 2_100_000, 1 << 16
# Of a TIFF, each strip or tile takes some 400 bytes of memory before the picture's size is known. They may lie over
# each other in the file, and each be as large as all of it. Compressions by Pillow's names: others can ask for memory
# that has nothing to do with the picture.
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


# ---- of the bytes, before they are read


def check_parts(reader: type[ImageFile], file: bytes, field: str) -> None:
    """Refuse what would take long to read, or much memory, before the size of the picture is known."""
    if reader is JpegImageFile and (parts := file.count(EXIF)) > MAX_EXIF_PARTS:
        raise InvalidRequest(field, f"{parts} parts with EXIF data", f"at most {MAX_EXIF_PARTS}")
    if reader is PngImageFile and (parts := sum(map(file.count, PACKED))) > MAX_PACKED_PARTS:
        raise InvalidRequest(field, f"{parts} parts with packed texts and profiles", f"at most {MAX_PACKED_PARTS}")
    if reader is TiffImageFile:
        _check_directory(file, field)


def _check_directory(file: bytes, field: str) -> None:
    """Refuse a TIFF whose first directory has very many entries, strips or tiles."""
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
    """How many entries the first directory of a TIFF has, and how many values those that say where its strips are."""
    order = "<" if file[:2] == b"II" else ">"
    big = 43 in file[2:4]  # offsets of eight bytes
    start, number, entry = ("Q", "Q", "HHQ8x") if big else ("L", "H", "HHL4x")
    (at,) = struct.unpack_from(order + start, file, 8 if big else 4)
    if at > len(file):
        raise struct.error
    (entries,) = struct.unpack_from(order + number, file, at)
    first = at + struct.calcsize(order + number)
    most = min(entries, MAX_TIFF_PARTS)
    step = struct.calcsize(order + entry)
    found = (struct.unpack_from(order + entry, file, first + i * step) for i in range(most))
    return entries, [count for tag, _, count in found if tag in (STRIPOFFSETS, TILEOFFSETS)]


def has_runs(file: bytes) -> bool:
    """Whether a BMP is packed as runs of equal pixels."""
    return len(file) >= 34 and file[30:34] in (struct.pack("<L", kind) for kind in RUNS)


# ---- of the header


def check_size(picture: ImageFile, field: str) -> None:
    """Refuse more pixels than can be decoded soon."""
    width, height = picture.size
    most = MAX_JPEG_PIXELS if isinstance(picture, JpegImageFile) else MAX_PIXELS
    if not 0 < width * height <= most or max(width, height) > MAX_SIDE:
        raise InvalidRequest(field, f"{width} x {height} pixels", f"1 to {most} pixels, at most {MAX_SIDE} a side")


def check_work(picture: ImageFile, file: bytes, field: str) -> None:
    """Refuse what takes longer, or more memory, than its pixels."""
    if isinstance(picture, JpegImageFile):
        _check_jpeg(picture, file, field)
    if isinstance(picture, BmpImageFile) and has_runs(file):
        _check_runs(picture, file, field)
    if isinstance(picture, TiffImageFile):
        _check_tiff(picture, file, field)


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


def _check_runs(picture: BmpImageFile, file: bytes, field: str) -> None:
    """Refuse a BMP of runs with many pixels, or with many runs that make none."""
    pixels = math.prod(picture.size)
    if pixels > MAX_PIXELS_IN_RUNS or len(file) > pixels + pixels // 4 + FREE_RUN_BYTES:
        found = f"{pixels} pixels in runs of {len(file)} bytes"
        raise InvalidRequest(field, found, f"at most {MAX_PIXELS_IN_RUNS} pixels, and little more than a byte for each")


def _check_tiff(picture: TiffImageFile, file: bytes, field: str) -> None:
    """Refuse compressions that are not known to be harmless, strips over each other, and very large tiles."""
    compression = picture.info.get("compression")
    if compression not in TIFF_COMPRESSIONS:
        known = ", ".join(TIFF_COMPRESSIONS)
        raise InvalidRequest(field, f"a TIFF file in compression {compression}", f"one of {known}")
    largest = max(_tile_pixels(picture))
    most = max(math.prod(picture.size), FREE_TILE_PIXELS)
    if largest > most:
        raise InvalidRequest(field, f"tiles of {largest} pixels", f"at most {most}")
    packed = sum(_whole_numbers(picture, STRIPBYTECOUNTS)) + sum(_whole_numbers(picture, TILEBYTECOUNTS))
    if compression != "raw" and packed > 2 * len(file):
        raise InvalidRequest(
            field, f"{packed} bytes in strips or tiles of a file of {len(file)}", "no more than it has"
        )
    if compression == "jpeg" and (scans := file.count(SCAN)) * largest > MAX_SCANNED_PIXELS:
        raise InvalidRequest(field, f"{scans} scans of {largest} pixels", f"{MAX_SCANNED_PIXELS} over all scans")


def _tile_pixels(picture: TiffImageFile) -> Iterator[int]:
    """How many pixels are unpacked at once: of a tile, or of a strip, which is no larger than the picture."""
    if TILEWIDTH in picture.tag_v2 or TILELENGTH in picture.tag_v2:
        yield max(_whole_numbers(picture, TILEWIDTH), default=0) * max(_whole_numbers(picture, TILELENGTH), default=0)
    rows = max(_whole_numbers(picture, ROWSPERSTRIP), default=picture.height)
    yield min(math.prod(picture.size), rows * max(picture.size))


def _whole_numbers(picture: TiffImageFile, tag: int) -> list[int]:
    """The values of an entry, as far as they are whole numbers."""
    values = picture.tag_v2.get(tag, ())
    values = values if isinstance(values, tuple) else (values,)
    return [value for value in values if isinstance(value, int)]
