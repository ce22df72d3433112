"""Decodes an image file to a picture in RGB, upright, as `transformers` loads it.

The header is read and checked (server/images/limits.py) before anything is decoded: a few bytes can stand for gigabytes
of pixels, or for hours of work. The file is opened again for decoding, because what Pillow keeps of an open file can be
many times as large as the file.
"""

import io
import math
import struct
from dataclasses import dataclass

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server.errors import InvalidRequest
from server.images import limits
from server.images.metered_reader import MeteredReader

# The first bytes of a file → its reader. Image.open is not used: for a JPEG of several pictures (MPO) it reads all
# headers.
READERS: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
    *((start, TiffImageFile) for start in limits.TIFF_STARTS),
)
# AVIF and HEIC files start with the length of a box of type `ftyp`, then a brand, a version, and other brands.
BRANDED, AVIF_BRANDS, SHARED_BRANDS = b"ftyp", (b"avif", b"avis"), (b"mif1", b"msf1")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")
EXPECTED = "a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"
# The first bytes of unsupported files → their format.
UNSUPPORTED: tuple[tuple[bytes, str], ...] = (
    (b"\0\0\0\x0cjP  \r\n", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (b"\0\0\0\x0cJXL \r\n", "a JPEG XL file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\x01\0", "an ICO file"),
    (b"\0\0\x02\0", "a CUR file"),
    *((b"P%d" % kind, "a PPM file") for kind in range(1, 7)),
    (b"%PDF", "a PDF file"),
    (b"8BPS", "a PSD file"),
    (b"<svg", "an SVG file"),
    (b"<?xml", "an XML file"),
    (b"version https://git-lfs.github.com/spec/", "a pointer of Git LFS, not the file itself"),
)
# TGA files do not begin with a signature. Most of them end with one. In the header, the type of the image (here with
# that of its colour table) and the bits per pixel have one of these values.
TGA_HEADER, TGA_SIGNATURE = struct.Struct("<xBB5s4xHHB"), b"TRUEVISION-XFILE.\0"
TGA_TYPES, TGA_BITS = {1: 1, 2: 0, 3: 0, 9: 1, 10: 0, 11: 0}, (8, 15, 16, 24, 32)
# Maximum bytes per pixel while decoding, as measured. All formats take 4, and 4 more while the picture is rotated or
# converted. In addition, a progressive JPEG has coefficients (12.1 bytes in CMYK), a WebP two canvases and a copy, an
# AVIF planes and two copies in RGB, and a TIFF can be a single strip.
BYTES_PER_PIXEL, WEBP_BYTES_PER_PIXEL, AVIF_BYTES_PER_PIXEL, TIFF_BYTES_PER_PIXEL = 12, 18, 24, 18
MAX_BRANDS_BYTES = 256  # of the box with the brands
BAND_ROWS = 256  # of a picture that are put on white at a time

TRANSPOSITIONS: dict[object, Image.Transpose] = {  # EXIF orientation → the transposition that makes the picture upright
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
    """Properties of a picture before it is decoded: its decoded size, and the memory that decoding takes."""

    width: int
    height: int
    decoding_bytes: int

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(file: bytes, field: str = "image", *, max_pixels: int = limits.MAX_PIXELS) -> Header:
    """Read the header of a file. InvalidRequest if it is not an image, or would take too much time or memory."""
    picture = _opened(file, field, max_pixels)
    bytes_per_pixel = {
        WebPImageFile: WEBP_BYTES_PER_PIXEL,
        AvifImageFile: AVIF_BYTES_PER_PIXEL,
        TiffImageFile: TIFF_BYTES_PER_PIXEL,
    }.get(type(picture), BYTES_PER_PIXEL)
    return Header(*picture.size, decoding_bytes=bytes_per_pixel * math.prod(picture.size))


def decode(file: bytes, field: str = "image", *, max_pixels: int = limits.MAX_PIXELS) -> Image.Image:
    """The picture in RGB, upright. InvalidRequest as in `read_header`, and for a truncated or broken file."""
    picture: Image.Image = _opened(file, field, max_pixels)
    try:
        picture.load()
        transposition = TRANSPOSITIONS.get(_orientation(picture))
        if transposition is not None:
            picture = picture.transpose(transposition)  # which also frees the opened picture
        return _rgb(picture)
    except Exception as error:
        raise _broken(field, error) from None


def on_white(picture: Image.Image) -> Image.Image:
    """A picture in RGB with white instead of the one colour that its file declares transparent, if there is one.

    Some image processors of transformers do this (`do_convert_rgb`); others leave that colour as it is.
    """
    if picture.info.get("transparency") is None:
        return picture
    for top in range(0, picture.height, BAND_ROWS):
        box = (0, top, picture.width, min(top + BAND_ROWS, picture.height))
        band = picture.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        picture.paste(Image.alpha_composite(white, band).convert("RGB"), box)
    return picture


def _opened(file: bytes, field: str, max_pixels: int) -> ImageFile:
    """The picture, checked, with its pixels not decoded yet."""
    reader = _reader(file, field)
    limits.check_parts(reader, file, field)
    try:
        picture = reader(_stream(reader, file))
    except Exception as error:
        raise _broken(field, error) from None
    limits.check_size(picture, field, max_pixels)
    limits.check_work(picture, file, field, max_pixels)
    if isinstance(picture, JpegImageFile) and math.prod(picture.size) > max_pixels:
        picture.draft(None, (picture.width // 2, picture.height // 2))
    return picture


def _reader(file: bytes, field: str) -> type[ImageFile]:
    """The reader of a file, by the first bytes of the file."""
    if not file:
        raise InvalidRequest(field, "no bytes", EXPECTED)
    for start, reader in READERS:
        if file.startswith(start):
            return reader
    if _is_avif(file):
        # By default libavif decodes on all processors, and takes memory for each of them.
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        return AvifImageFile
    raise InvalidRequest(field, _unsupported(file), EXPECTED)


def _brands(file: bytes) -> list[bytes]:
    """The brands of an AVIF or HEIC file, the major one first; empty for other files."""
    if file[4:8] != BRANDED:
        return []
    end = min(int.from_bytes(file[:4], "big"), MAX_BRANDS_BYTES)
    return [file[8:12], *(file[at : at + 4] for at in range(16, end, 4))]


def _is_avif(file: bytes) -> bool:
    """Whether a file is in AVIF: by its major brand or, if HEIC files can have that as well, by the others."""
    major, *others = _brands(file) or [b""]
    return major in AVIF_BRANDS or (major in SHARED_BRANDS and not any(brand in HEIC_BRANDS for brand in others))


def _unsupported(file: bytes) -> str:
    """The format of a file that is not supported, for an error."""
    if any(brand in HEIC_BRANDS for brand in _brands(file)):
        return "a HEIC file"
    if _is_tga(file):
        return "a TGA file"
    return next(
        (kind for start, kind in UNSUPPORTED if file.startswith(start)), f"{len(file)} bytes that are not an image"
    )


def _is_tga(file: bytes) -> bool:
    if file.endswith(TGA_SIGNATURE):
        return True
    if len(file) <= TGA_HEADER.size:
        return False
    has_colours, kind, colours, width, height, bits = TGA_HEADER.unpack_from(file)
    has_type = has_colours == TGA_TYPES.get(kind) and bool(has_colours) == any(colours)
    return has_type and bits in TGA_BITS and width * height > 0


def _stream(reader: type[ImageFile], file: bytes) -> io.BytesIO:
    """The file as a stream with a limited number of reads. A BMP in runs has no limit: each run takes two reads."""
    if reader is BmpImageFile and limits.has_runs(file):
        return io.BytesIO(file)
    return MeteredReader(file)


def _orientation(picture: Image.Image) -> object:
    """The orientation in the EXIF data, or in a text chunk with EXIF data. No other part of them is parsed."""
    size = max(len(picture.info.get(name, b"")) for name in ("exif", "Raw profile type exif"))
    if size > limits.MAX_EXIF_BYTES:
        raise ValueError(f"{size} bytes of EXIF data, more than {limits.MAX_EXIF_BYTES}")
    return picture.getexif().get(ExifTags.Base.Orientation)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow, and with it transformers, turns all but the 256 darkest of 65,536 greys into white. The upper byte is
        # used here, as Pillow does for 16 bits per colour.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        del picture.info["transparency"]  # the opacity of each colour, which Pillow drops as well, but with a warning
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _broken(field: str, error: Exception) -> Exception:
    """The error to raise for an error of Pillow, which raises a dozen kinds of exceptions for broken files."""
    if isinstance(error, MemoryError):
        return error
    return InvalidRequest(field, f"a broken image ({error})", EXPECTED)
