"""Files that would take too much time or memory are refused, and damaged files never crash the decoder."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.errors import InvalidRequest
from server.images.file import read_header
from server.images.limits import HALVED, MAX_PIXELS
from tests.server.images.files import (
    FILES,
    TURNED,
    bmp,
    decoder,
    expected,
    file_of,
    jpeg_claiming,
    picture,
    png_chunk,
    png_header,
    segment,
    tiff,
    with_parts,
)
from tests.serving import ROOT


def test_a_jpeg_of_100_megapixels_is_decoded_at_half_its_size():
    grey = file_of(Image.new("L", (11_600, 8_700), 77), "JPEG")
    assert np.ptp(decoder().decode(grey), axis=(1, 2)).max() == 0
    with pytest.raises(InvalidRequest, match=rf"15000 x 11000 pixels, expected 1 to {HALVED * MAX_PIXELS}"):
        decoder().decode(jpeg_claiming(15_000, 11_000))


def test_a_jpeg_with_many_pixels_and_many_scans_is_refused():
    """Each scan processes all pixels again: it takes 70 bytes, and tens of milliseconds."""
    file = jpeg_claiming(8_000, 6_000, progressive=True)
    last_scan = file[file.rindex(b"\xff\xda") : -2]
    with pytest.raises(InvalidRequest, match="found 8000 x 6000 pixels in 110 scans, expected at most"):
        decoder().decode(file[:-2] + last_scan * 100 + file[-2:])
    small = file_of(picture(), "JPEG", progressive=True)
    assert decoder().decode(small[:-2] + small[small.rindex(b"\xff\xda") : -2] * 100 + small[-2:]).shape


def test_the_limit_on_pixels_is_lower_for_a_progressive_jpeg():
    """Its decoder keeps the coefficients of the whole image: half a gigabyte or more."""
    with pytest.raises(InvalidRequest, match=f"in 10 scans, expected at most {MAX_PIXELS} pixels"):
        decoder().decode(jpeg_claiming(11_600, 8_700, progressive=True))


def test_the_limit_on_pixels_is_the_same_for_a_jpeg_with_several_pictures():
    """Phones write such files (MPO): with a gain map or a second view after the picture."""
    file = jpeg_claiming(11_600, 8_700, "MPO", save_all=True, append_images=[picture(seed=1)])
    assert read_header(file).decoded == (5_800, 4_350)


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


def test_a_memory_error_is_not_reported_as_a_broken_image():
    child = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, input=png_header(8_000, 6_000), capture_output=True, check=True
    )
    assert child.stdout == b"no memory\n"


def test_compressed_text_in_a_png_is_limited():
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 50_000_000))
    file = FILES["png"]
    with pytest.raises(InvalidRequest, match="a broken image .Decompressed data too large"):
        decoder().decode(file[:33] + bomb + file[33:])


@pytest.mark.parametrize(
    ("file", "message"),
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
def test_a_file_with_too_many_parts_is_refused(file, message):
    """Some parts take quadratic time to read, others hundreds of bytes of memory for each byte."""
    with pytest.raises(InvalidRequest, match=message):
        decoder().decode(file)


def test_as_many_parts_as_cameras_and_programs_write_are_accepted():
    large = segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 65_000) * 200 + segment(0xE5, b"") * 200
    exif = segment(0xE1, b"Exif\0\0" + TURNED.tobytes().removeprefix(b"Exif\0\0") + b"x" * 65_000)
    found = decoder().decode(with_parts("jpeg", exif + large))
    assert np.abs(found - expected(FILES["turned"])).max() <= 1e-6
    pixels = FILES["png"][FILES["png"].index(b"IDAT") + 4 : FILES["png"].index(b"IEND") - 8]
    pieces = b"".join(png_chunk(b"IDAT", pixels[at : at + 256]) for at in range(0, len(pixels), 256))
    texts = png_chunk(b"tEXt", b"key\0" + b"value" * 20) * 1000
    found = decoder().decode(FILES["png"][:33] + texts + pieces + png_chunk(b"IEND", b""))
    assert np.abs(found - expected(FILES["png"])).max() <= 1e-6


def test_only_the_first_of_100_000_frames_is_decoded():
    file = file_of(Image.new("L", (1, 1)), "GIF")
    start = file.index(b",")
    frame = file[start:-1]
    assert decoder().decode(file[:-1] + frame * 100_000 + file[-1:]).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("file", "message"),
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
def test_bmp_tiff_and_avif_files_are_limited(file, message):
    with pytest.raises(InvalidRequest, match=message):
        decoder().decode(file)


def test_only_the_first_of_50_000_pages_is_decoded():
    one = tiff(5, 6)
    (start,) = struct.unpack_from("<L", one, 4)
    directory = one[start:-4]
    size = len(directory) + 4
    pages = b"".join(directory + struct.pack("<L", start + n * size) for n in range(1, 50_000)) + directory + bytes(4)
    assert decoder().decode(one[:start] + pages).shape == (3, 32, 32)


def test_a_strip_is_decompressed_only_to_the_size_of_the_image():
    bomb = zlib.compress(bytes(100_000_000))
    assert decoder().decode(tiff(70, 70, pixels=bomb, compression=8)).shape == (3, 32, 32)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # for damaged EXIF data
@settings(max_examples=150)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_damaged_files_are_refused_or_decoded_but_never_crash(kind, data):
    file = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = decoder().decode(bytes(file[: data.draw(st.integers(1, len(file)))]))
    except InvalidRequest:
        return
    assert np.isfinite(pixels).all()
