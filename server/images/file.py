"""Decodes an image file to a picture in RGB, upright, as `transformers` loads it.

The header is read and checked (server/images/limits.py) before anything is decoded: a few bytes can stand for gigabytes
of pixels, or for hours of work. The file is opened again for decoding, because what Pillow keeps of an open file can be
many times as large as the file.
"""

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import AvifImagePlugin, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from server.errors import InvalidRequest
from server.images import limits, orientation
from server.images.metered_reader import MeteredReader
from server.images.orientation import Box, Size

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

Reduction = Callable[[Size], float]  # the size of a JPEG → how many times smaller it may be decoded


@dataclass(frozen=True)
class Header:
    """Properties of a picture before it is decoded: its size, its size when decoded, and the memory that this takes."""

    size: Size
    decoded: Size
    decoding_bytes: int

    @property
    def pixels(self) -> int:
        """The number of pixels that are decoded."""
        return math.prod(self.decoded)


@dataclass(frozen=True)
class Picture:
    """A picture in RGB, upright. `size` is its size in the file.

    A JPEG can be decoded at a half, a quarter or an eighth of its size. Then `box` is the part of `image` with the
    picture, to a fraction of a pixel.
    """

    image: Image.Image
    size: Size
    box: Box


def full_size(size: Size) -> float:
    """No reduction."""
    return 1


def read_header(
    file: bytes, field: str = "image", *, max_pixels: int = limits.MAX_PIXELS, reduction: Reduction = full_size
) -> Header:
    """Read the header of a file. InvalidRequest if it is not an image, or would take too much time or memory."""
    picture, size, _ = _opened(file, field, max_pixels, reduction)
    bytes_per_pixel = {
        WebPImageFile: WEBP_BYTES_PER_PIXEL,
        AvifImageFile: AVIF_BYTES_PER_PIXEL,
        TiffImageFile: TIFF_BYTES_PER_PIXEL,
    }.get(type(picture), BYTES_PER_PIXEL)
    return Header(size, picture.size, decoding_bytes=bytes_per_pixel * math.prod(picture.size))


def decode(
    file: bytes, field: str = "image", *, max_pixels: int = limits.MAX_PIXELS, reduction: Reduction = full_size
) -> Picture:
    """Decode a picture. InvalidRequest as in `read_header`, and for a truncated or broken file.

    A JPEG is decoded at the smallest scale that `reduction` allows. One of more than `max_pixels` is
    decoded at half its size or smaller.
    """
    opened, size, box = _opened(file, field, max_pixels, reduction)
    image: Image.Image = opened
    try:
        image.load()
        if (transposition := orientation.transposition(image)) is not None:
            size = orientation.transposed_size(size, transposition)
            box = orientation.transposed_box(box, image.size, transposition)
            image = image.transpose(transposition)  # which also frees the opened picture
        return Picture(_rgb(image), size, box)
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


def _opened(file: bytes, field: str, max_pixels: int, reduction: Reduction) -> tuple[ImageFile, Size, Box]:
    """The picture, checked, with its pixels not decoded yet; its size in the file; and the box of `Picture`."""
    reader = _reader(file, field)
    limits.check_parts(reader, file, field)
    try:
        picture = reader(_stream(reader, file))
    except Exception as error:
        raise _broken(field, error) from None
    limits.check_size(picture, field, max_pixels)
    limits.check_work(picture, file, field, max_pixels)
    size = picture.size
    box: Box = (0, 0, *size)
    if isinstance(picture, JpegImageFile):
        factor = max(reduction(size), 2 if math.prod(size) > max_pixels else 1)
        # Pillow takes the smallest scale that leaves at least this size, and divides by it.
        drafted = picture.draft(None, (max(1, int(size[0] / factor)), max(1, int(size[1] / factor))))
        box = drafted[1] if drafted else box
    return picture, size, box


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
