"""Image files for tests, of every accepted kind or built byte by byte, and the pixel values of transformers."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from protos.manifest_pb2 import ImageInput, Size
from server.images.limits import MAX_PIXELS
from server.images.preprocess import ImageDecoder

HALF = {"mean": [0.5, 0.4, 0.3], "deviation": [0.5, 0.6, 0.7]}
GREY_LEVEL = 1 / 255 / 0.5 * 1.001  # after normalisation, at the smallest deviation


def picture(width=90, height=60, mode="RGB", seed=0):
    """A picture with smooth areas and hard edges."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 9, 4), np.uint8), "RGBA")
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decoder(*, max_pixels=MAX_PIXELS, reducing_gap=0, **fields):
    steps = {"height": 32, "width": 32, "resize": Size(height=32, width=32), "resample": "bilinear", "rescale": 1 / 255}
    return ImageDecoder(ImageInput(**steps | HALF | fields), max_pixels=max_pixels, reducing_gap=reducing_gap)


def expected(file, **options):
    """The pixel values (3, 32, 32) of the image processor of transformers."""
    image = load_image(Image.open(io.BytesIO(file)))
    processor = ViTImageProcessorPil(
        **{"size": {"height": 32, "width": 32}, "image_mean": HALF["mean"], "image_std": HALF["deviation"]} | options
    )
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


TURNED = Image.Exif()
TURNED[0x0112] = 6  # rotated by a quarter turn

FILES = {
    "png": file_of(picture()),
    "jpeg": file_of(picture(), "JPEG"),
    "webp": file_of(picture(), "WEBP"),
    "grey": file_of(picture(mode="L")),
    "grey jpeg": file_of(picture(mode="L"), "JPEG"),
    "grey with alpha": file_of(picture(mode="LA")),
    "alpha": file_of(picture(mode="RGBA")),
    "palette": file_of(picture().quantize(17)),
    "palette with transparency": file_of(picture().quantize(17), transparency=3),
    "grey with a transparent grey": file_of(picture(mode="L"), transparency=120),
    "transparent colour": file_of(picture().quantize(9).convert("RGB"), transparency=(120, 30, 40)),
    "black and white": file_of(picture(mode="1")),
    "cmyk": file_of(picture(mode="CMYK"), "JPEG"),
    "turned": file_of(picture(), "JPEG", exif=TURNED),
    "turned png": file_of(picture(), exif=TURNED),
    "progressive": file_of(picture(), "JPEG", progressive=True),
    "gif": file_of(picture(), "GIF"),
    "transparent gif": file_of(picture().quantize(17), "GIF", transparency=3),
    "moving gif": file_of(picture(), "GIF", save_all=True, append_images=[picture(seed=1), picture(seed=2)]),
    "moving webp": file_of(picture(), "WEBP", save_all=True, append_images=[picture(seed=1)]),
    "moving png": file_of(picture(), save_all=True, append_images=[picture(seed=1)]),
    "several pictures": file_of(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]),
    "webp with alpha": file_of(picture(mode="RGBA"), "WEBP"),
    "bmp": file_of(picture(), "BMP"),
    "grey bmp": file_of(picture(mode="L"), "BMP"),
    "black and white bmp": file_of(picture(mode="1"), "BMP"),
    "palette bmp": file_of(picture().quantize(17), "BMP"),
    "tiff": file_of(picture(), "TIFF"),
    "large tiff": file_of(picture(), "TIFF", big_tiff=True),
    "tiff of runs": file_of(picture(mode="L"), "TIFF", compression="packbits"),
    "tiff with alpha": file_of(picture(mode="RGBA"), "TIFF", compression="tiff_lzw"),
    "cmyk tiff": file_of(picture(mode="CMYK"), "TIFF", compression="tiff_deflate"),
    "palette tiff": file_of(picture().quantize(17), "TIFF", compression="tiff_adobe_deflate"),
    "photograph in a tiff": file_of(picture(), "TIFF", compression="jpeg"),
    "fax": file_of(picture(mode="1"), "TIFF", compression="group4"),
    "tiff of 32 bits": file_of(picture(mode="L").convert("I"), "TIFF"),
    "tiff of numbers with a point": file_of(picture(mode="F"), "TIFF"),
    "turned tiff": file_of(picture(), "TIFF", exif=TURNED),
    "tiff of several pages": file_of(picture(), "TIFF", save_all=True, append_images=[picture(seed=1)]),
    "avif": file_of(picture(), "AVIF", speed=10),
    "grey avif": file_of(picture(mode="L"), "AVIF", speed=10),
    "avif with alpha": file_of(picture(mode="RGBA"), "AVIF", speed=10, subsampling="4:4:4"),
    "turned avif": file_of(picture(), "AVIF", speed=10, exif=TURNED.tobytes()),
    "moving avif": file_of(picture(), "AVIF", speed=10, save_all=True, append_images=[picture(seed=1)]),
    "one pixel": file_of(picture(1, 1)),
    "a line": file_of(picture(400, 1)),
    "larger": file_of(picture(640, 480)),
    "upright": file_of(picture(60, 90)),
}


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG of a few bytes whose header has this size."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


def jpeg_claiming(width, height, form="JPEG", **options):
    """A small JPEG whose header has this size."""
    file = file_of(picture(), form, **options)
    size = file.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0") + 5
    return file[:size] + struct.pack(">HH", height, width) + file[size + 4 :]


def segment(marker, data):
    """A part of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_parts(kind, parts):
    """A file with these parts before its pixels."""
    at = {"jpeg": 2, "png": 33, "gif": FILES["gif"].index(b"!")}[kind]
    return FILES[kind][:at] + parts + FILES[kind][at:]


def tiff(width, height, *more, pixels=b"\0" * 90, compression=1, strips=1):
    """An RGB TIFF, little-endian, whose strips share their data. `more` are entries: tag, type, count, value."""
    short, long, at = 3, 4, 8
    pointers = at + len(pixels) + 6
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, 3, at + len(pixels)),
        (259, short, 1, compression),
        (262, short, 1, 2),
        (273, long, strips, at if strips == 1 else pointers),
        (277, short, 1, 3),
        (278, long, 1, -(-height // strips)),
        (279, long, strips, len(pixels) if strips == 1 else pointers + 4 * strips),
    ]
    tables = b"" if strips == 1 else struct.pack("<L", at) * strips + struct.pack("<L", len(pixels)) * strips
    directory = b"".join(struct.pack("<HHLL", *entry) for entry in sorted([*entries, *more]))
    body = pixels + struct.pack("<HHH", 8, 8, 8) + tables
    count = struct.pack("<H", len(entries) + len(more))
    return b"II*\0" + struct.pack("<L", at + len(body)) + body + count + directory + bytes(4)


def bmp(width, height, data, *, bits=8, runs=0):
    """A BMP with a palette. A negative height means that the first row is the top row."""
    palette = b"".join(bytes([i, i * 7 % 256, i, 0]) for i in range(1 << bits))
    header = struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, runs, len(data), 0, 0, 1 << bits, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(data), 0, 0, start) + header + palette + data
