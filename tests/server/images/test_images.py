"""Files are decoded to the pixel values of transformers; unusable or hostile files are refused."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from protos.manifest_pb2 import ImageInput, Size
from server.errors import InvalidRequest
from server.images.file import read_header
from server.images.limits import MAX_JPEG_PIXELS, MAX_PIXELS, MAX_SIDE
from server.images.preprocess import ImageDecoder
from tests.serving import ROOT

HALF = {"mean": [0.5, 0.4, 0.3], "deviation": [0.5, 0.6, 0.7]}
GREY_LEVEL = 1 / 255 / 0.5 * 1.001  # after normalisation, at the smallest deviation


def picture(width=90, height=60, mode="RGB", seed=0):
    """Smooth shapes and hard edges."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 9, 4), np.uint8), "RGBA")
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def decoder(**fields):
    steps = {"height": 32, "width": 32, "resize": Size(height=32, width=32), "resample": "bilinear", "rescale": 1 / 255}
    return ImageDecoder(ImageInput(**steps | HALF | fields))


def expected(file, **options):
    """What transformers' pipeline feeds its model."""
    image = load_image(Image.open(io.BytesIO(file)))
    processor = ViTImageProcessorPil(
        **{"size": {"height": 32, "width": 32}, "image_mean": HALF["mean"], "image_std": HALF["deviation"]} | options
    )
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


UPRIGHT = Image.Exif()
TURNED = Image.Exif()
TURNED[0x0112] = 6  # to be turned by a quarter

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


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_gives_what_transformers_gives(kind):
    pixels = decoder().decode(FILES[kind])
    assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.float32, (3, 32, 32), True)
    assert np.abs(pixels - expected(FILES[kind])).max() <= 1e-6


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"resample": "nearest"}, {"resample": 0}),
        ({"resample": "lanczos"}, {"resample": 1}),
        ({"resample": "bicubic"}, {"resample": 3}),
        ({"resize": Size(height=32, width=32), "mean": [], "deviation": []}, {"do_normalize": False}),
        (
            {"resize": Size(shortest_edge=36), "crop": Size(height=32, width=32)},
            {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        ),
        (
            {"resize": Size(shortest_edge=21), "crop": Size(height=32, width=32)},  # black is added above and below
            {"size": {"shortest_edge": 21}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        ),
        ({"rescale": 1 / 127.5}, {"rescale_factor": 1 / 127.5}),
    ],
)
@pytest.mark.parametrize("kind", ["png", "upright", "larger"])
def test_every_step_is_taken_as_transformers_takes_it(fields, options, kind):
    pixels = decoder(**fields).decode(FILES[kind])
    assert np.abs(pixels - expected(FILES[kind], **options)).max() <= GREY_LEVEL


def test_a_model_that_does_not_resize_takes_its_own_size_only():
    own = ImageDecoder(ImageInput(height=60, width=90, rescale=1 / 255))
    assert own.decode(FILES["png"]).shape == (3, 60, 90)
    with pytest.raises(InvalidRequest, match=r"image\[3\]: found 60 x 90 pixels, expected 90 x 60"):
        own.decode(FILES["upright"], "image[3]")


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width, height):
    """A PNG of very few bytes that claims to be very large."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "found no bytes, expected a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"),
        (b"hello", "found 5 bytes that are no image"),
        (file_of(picture(), "PPM"), "found a PPM file, expected a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"),
        (file_of(picture(), "ICO", sizes=[(16, 16)]), "found an ICO file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "found a JPEG 2000 file"),
        (b"\n" + FILES["jpeg"], "bytes that are no image"),
        (FILES["bmp"][:-40], "found a broken image"),
        (FILES["tiff"][:-400], "found a "),
        (FILES["cmyk tiff"][:-300], "found a "),
        (FILES["avif"][:-40], "found a broken image"),
        (b"II*\0" + b"\xff" * 20, "found a TIFF file that ends before its directory"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "bytes that are no image"),
        (FILES["png"][:-40], "found a broken image"),
        (FILES["jpeg"][:-200], "found a broken image"),
        (FILES["webp"][:-40], "found "),
        (FILES["png"][:20], "found "),
        (png_header(8000, 8000), f"found 8000 x 8000 pixels, expected 1 to {MAX_PIXELS} pixels"),
        (png_header(500, MAX_SIDE + 1), f"found 500 x 65537 pixels, expected 1 to {MAX_PIXELS} pixels, at most 65536"),
        (png_header(10_000, 9_500), "pixels"),
        (png_header(50_000, 50_000), f"found 50000 x 50000 pixels, expected 1 to {MAX_PIXELS} pixels"),
        (png_header(0, 5), "found "),
    ],
)
def test_unusable_files_are_refused(file, said):
    with pytest.raises(InvalidRequest) as refusal:
        decoder().decode(file, "images[2]")
    assert str(refusal.value).startswith("images[2]: found ")
    assert said in str(refusal.value)


def test_a_line_of_pixels_cannot_be_resized_to_gigabytes():
    thin = file_of(Image.new("RGB", (60_000, 1)))
    blow = decoder(resize=Size(shortest_edge=256), crop=Size(height=32, width=32))
    with pytest.raises(InvalidRequest, match="found 60000 x 1 pixels, expected sides that differ less"):
        blow.decode(thin)


def test_the_upper_eight_of_16_grey_bits_are_used():
    """Unlike transformers, which shows all but the 256 darkest greys as white."""
    greys = np.asarray(picture(mode="L"))
    fine = (greys.astype(np.uint16) << 8) + 77
    found = decoder().decode(file_of(Image.fromarray(fine)))
    assert np.abs(found - expected(file_of(Image.fromarray(greys)))).max() <= 1e-6


# ---- files made to harm


def jpeg_claiming(width, height, form="JPEG", **options):
    """A small JPEG whose header says that it is large."""
    file = file_of(picture(), form, **options)
    size = file.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0") + 5
    return file[:size] + struct.pack(">HH", height, width) + file[size + 4 :]


def test_a_jpeg_of_100_megapixels_is_decoded_at_half_its_size():
    grey = file_of(Image.new("L", (11_600, 8_700), 77), "JPEG")
    assert np.ptp(decoder().decode(grey), axis=(1, 2)).max() == 0
    with pytest.raises(InvalidRequest, match=rf"15000 x 11000 pixels, expected 1 to {MAX_JPEG_PIXELS}"):
        decoder().decode(jpeg_claiming(15_000, 11_000))


def test_a_jpeg_cannot_have_many_pixels_and_many_scans():
    """Each scan goes over all pixels again: in 70 bytes, and for tens of milliseconds."""
    file = jpeg_claiming(8_000, 6_000, progressive=True)
    last_scan = file[file.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidRequest, match="found 8000 x 6000 pixels in 110 scans, expected at most"):
        decoder().decode(file[:-2] + last_scan * 100 + file[-2:])
    small = file_of(picture(), "JPEG", progressive=True)
    assert decoder().decode(small[:-2] + small[small.rindex(b"\xff\xda") : -2] * 100 + small[-2:]).shape


def test_a_jpeg_in_scans_cannot_have_as_many_pixels_as_one_that_is_read_once():
    """The coefficients of the whole picture are kept meanwhile: half a gigabyte and more."""
    with pytest.raises(InvalidRequest, match=f"in 10 scans, expected at most {MAX_PIXELS} pixels"):
        decoder().decode(jpeg_claiming(11_600, 8_700, progressive=True))


def test_a_photograph_of_several_pictures_may_be_as_large_as_one_of_one():
    """Telephones write such (MPO): a gain map or a second view behind the picture."""
    file = jpeg_claiming(11_600, 8_700, "MPO", save_all=True, append_images=[picture(seed=1)])
    assert read_header(file).size == (5_800, 4_350)


OUT_OF_MEMORY = """
import resource, sys
from server.errors import InvalidRequest
from server.images.file import decode, read_header
file = sys.stdin.buffer.read()
read_header(file)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000,) * 2)
try:
    decode(file)
except MemoryError:
    print("no memory")
"""


def test_a_memory_error_is_not_blamed_on_the_file():
    child = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, input=png_header(8_000, 6_000), capture_output=True, check=True
    )
    assert child.stdout == b"no memory\n"


def test_text_in_a_png_cannot_be_unpacked_without_a_limit():
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 50_000_000))
    file = FILES["png"]
    with pytest.raises(InvalidRequest, match="a broken image .Decompressed data too large"):
        decoder().decode(file[:33] + bomb + file[33:])


def segment(marker, data):
    """A part of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_parts(kind, parts):
    """A file with more parts, in front of its pixels."""
    at = {"jpeg": 2, "png": 33, "gif": FILES["gif"].index(b"!")}[kind]
    return FILES[kind][:at] + parts + FILES[kind][at:]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            with_parts("jpeg", segment(0xE1, b"Exif\0\0" + b"x" * 9) * 40_000),
            "40000 parts with EXIF data, expected at most 16",
        ),
        (with_parts("jpeg", segment(0xE5, b"") * 100_000), "in more than"),
        (with_parts("jpeg", segment(0xE5, b"") + b"-" * 100_000), "in more than"),
        (with_parts("png", png_chunk(b"prVt", b"") * 50_000), "in more than"),
        (
            with_parts("png", png_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 1_000_000)) * 17),
            "17 parts with packed",
        ),
        (with_parts("png", png_chunk(b"eXIf", b"MM" + b"x" * 2_000_000)), "2000008 bytes of EXIF data"),
        (FILES["png"].replace(b"\0\0\0\0IEND", png_chunk(b"IDAT", b"") * 50_000 + b"\0\0\0\0IEND"), "in more than"),
        (with_parts("gif", b"!\xfe" + b"\x01a" * 50_000 + b"\0"), "in more than"),
    ],
    ids=range(8),
)
def test_a_file_of_very_many_parts_is_refused(file, said):
    """Some of them are read in quadratic time, others in hundreds of bytes of memory for each of theirs."""
    with pytest.raises(InvalidRequest, match=said):
        decoder().decode(file)


def test_as_many_parts_as_cameras_and_programs_write_are_read():
    large = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 65_000) * 200 + segment(0xE5, b"") * 200
    exif = segment(0xE1, b"Exif\0\0" + TURNED.tobytes().removeprefix(b"Exif\0\0") + b"x" * 65_000)
    found = decoder().decode(with_parts("jpeg", exif + large))
    assert np.abs(found - expected(FILES["turned"])).max() <= 1e-6
    pixels = FILES["png"][FILES["png"].index(b"IDAT") + 4 : FILES["png"].index(b"IEND") - 8]
    pieces = b"".join(png_chunk(b"IDAT", pixels[at : at + 256]) for at in range(0, len(pixels), 256))
    texts = png_chunk(b"tEXt", b"key\0" + b"value" * 20) * 1000
    found = decoder().decode(FILES["png"][:33] + texts + pieces + png_chunk(b"IEND", b""))
    assert np.abs(found - expected(FILES["png"])).max() <= 1e-6


def test_of_a_hundred_thousand_frames_one_is_read():
    file = file_of(Image.new("L", (1, 1)), "GIF")
    start = file.index(b",")
    frame = file[start:-1]
    assert decoder().decode(file[:-1] + frame * 100_000 + file[-1:]).shape == (3, 32, 32)


def tiff(width, height, *more, pixels=b"\0" * 90, compression=1, strips=1):
    """A TIFF in RGB, little-endian, whose strips all lie in one place. `more` entries: tag, type, count, value."""
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
    """A BMP with a palette of many colours; a height below 0 puts the first row at the top."""
    palette = b"".join(bytes([i, i * 7 % 256, i, 0]) for i in range(1 << bits))
    header = struct.pack("<LllHHLLllLL", 40, width, height, 1, bits, runs, len(data), 0, 0, 1 << bits, 0)
    start = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<LHHL", start + len(data), 0, 0, start) + header + palette + data


def test_a_bmp_may_begin_at_the_top_and_be_packed_in_runs():
    rows = [bytes([row * 20 % 256]) * 8 for row in range(12)]
    bottom_up = bmp(8, 12, b"".join(reversed(rows)))
    top_down = bmp(8, -12, b"".join(rows))
    runs = bmp(8, 12, b"".join(bytes([8, row[0], 0, 0]) for row in reversed(rows)) + b"\0\1", runs=1)
    for file in (bottom_up, top_down, runs):
        found = decoder().decode(file)
        assert np.abs(found - expected(file)).max() <= 1e-6
        assert np.abs(found - expected(bottom_up)).max() <= 1e-6


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (bmp(2**31 - 1, 2**31 - 1, b""), "found 2147483647 x 2147483647 pixels"),
        (bmp(8000, 7000, b"\0\1", runs=1), "found 8000 x 7000 pixels"),
        (bmp(6000, 7000, b"\0\1", runs=1), "found 42000000 pixels in runs of .* bytes, expected at most 2100000"),
        (bmp(1000, 1000, b"\0\2\0\0" * 400_000, runs=1), "found 1000000 pixels in runs of 1601078 bytes"),
        (b"BM" + bytes(12) + b"\xff" * 100, "found a broken image"),
        (tiff(2**31, 2**31), "found 2147483648 x 2147483648 pixels"),
        (tiff(10, 65_537), "found 10 x 65537 pixels"),
        (tiff(1, 50_000, strips=50_000), "found 50000 strips or tiles, expected at most 32768"),
        (tiff(500, 30_000, pixels=bytes(1500), strips=30_000), "read in more than"),
        (
            tiff(500, 30_000, pixels=zlib.compress(bytes(500_000)), strips=30_000, compression=8),
            "bytes in strips or tiles of a file of",
        ),
        (tiff(9, 9, *((tag, 1, 1_000_000, 8) for tag in range(40_000, 42_000))), "found 2009 entries in a TIFF"),
        (tiff(9, 9, (322, 4, 1, 65_520), (323, 4, 1, 65_520), compression=8), "found tiles of 4292870400 pixels"),
        (file_of(picture(), "TIFF", compression="lzma"), "found a TIFF file in compression lzma, expected one of raw"),
        (file_of(picture(), "TIFF", compression="zstd"), "found a TIFF file in compression zstd"),
        (
            tiff(7000, 7000, pixels=FILES["progressive"] + b"\xff\xda" * 100, compression=7),
            "scans of 49000000 pixels, expected 1000000000 over all scans",
        ),
        (FILES["avif"].replace(b"ispe" + bytes(4), b"ispe" + bytes(4) + b"\0\0\xea\x60" * 2, 1), "a broken image"),
    ],
    ids=range(16),
)
def test_new_forms_are_bounded_in_the_same_way(file, said):
    with pytest.raises(InvalidRequest, match=said):
        decoder().decode(file)


def test_of_tens_of_thousands_of_pages_one_is_read():
    one = tiff(5, 6)
    (start,) = struct.unpack_from("<L", one, 4)
    directory = one[start:-4]
    size = len(directory) + 4
    pages = b"".join(directory + struct.pack("<L", start + n * size) for n in range(1, 50_000)) + directory + bytes(4)
    assert decoder().decode(one[:start] + pages).shape == (3, 32, 32)


def test_what_unpacks_to_more_than_the_picture_is_unpacked_as_far_as_it_goes():
    bomb = zlib.compress(bytes(100_000_000))
    assert decoder().decode(tiff(70, 70, pixels=bomb, compression=8)).shape == (3, 32, 32)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged EXIF data
@settings(deadline=None, max_examples=150)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_are_refused_or_read_but_never_crash(kind, data):
    file = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decoder().decode(bytes(file[: data.draw(st.integers(1, len(file)))]))
    except InvalidRequest:
        return
    assert np.isfinite(pixels).all()
