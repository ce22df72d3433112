"""Files are decoded to the pixel values of transformers; unusable files are refused."""

import numpy as np
import pytest
from PIL import Image

from protos.manifest_pb2 import ImageInput, Size
from server.errors import InvalidRequest
from server.images.limits import MAX_PIXELS, MAX_SIDE
from server.images.preprocess import ImageDecoder
from tests.server.images.files import FILES, GREY_LEVEL, bmp, decoder, expected, file_of, picture, png_header


@pytest.mark.parametrize("kind", FILES)
def test_files_are_decoded_as_transformers_decodes_them(kind):
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
def test_each_step_equals_that_of_transformers(fields, options, kind):
    pixels = decoder(**fields).decode(FILES[kind])
    assert np.abs(pixels - expected(FILES[kind], **options)).max() <= GREY_LEVEL


def test_a_model_without_resizing_accepts_only_its_own_size():
    own = ImageDecoder(ImageInput(height=60, width=90, rescale=1 / 255))
    assert own.decode(FILES["png"]).shape == (3, 60, 90)
    with pytest.raises(InvalidRequest, match=r"image\[3\]: found 60 x 90 pixels, expected 90 x 60"):
        own.decode(FILES["upright"], "image[3]")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "found no bytes, expected a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"),
        (b"hello", "found 5 bytes that are not an image"),
        (file_of(picture(), "PPM"), "found a PPM file, expected a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file"),
        (file_of(picture(), "ICO", sizes=[(16, 16)]), "found an ICO file"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "found a JPEG 2000 file"),
        (b"\n" + FILES["jpeg"], "bytes that are not an image"),
        (FILES["bmp"][:-40], "found a broken image"),
        (FILES["tiff"][:-400], "found a "),
        (FILES["cmyk tiff"][:-300], "found a "),
        (FILES["avif"][:-40], "found a broken image"),
        (b"II*\0" + b"\xff" * 20, "found a TIFF file that ends before its directory"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "found a HEIC file, expected a JPEG, PNG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100), "found a HEIC file"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(100), "bytes that are not an image"),
        (b"\xff\xff\xff\xffftypisom", "found 12 bytes that are not an image"),
        (file_of(picture(), "TGA"), "found a TGA file, expected a JPEG, PNG"),
        (file_of(picture(), "TGA")[:1000], "found a TGA file"),
        (file_of(picture(mode="L"), "TGA", compression="tga_rle")[:1000], "found a TGA file"),
        (file_of(picture().quantize(16), "TGA")[:1000], "found a TGA file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "found a pointer of Git LFS, not the file itself",
        ),
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
def test_unusable_files_are_refused(file, message):
    with pytest.raises(InvalidRequest) as refusal:
        decoder().decode(file, "images[2]")
    assert str(refusal.value).startswith("images[2]: found ")
    assert message in str(refusal.value)


def test_an_image_with_very_different_sides_is_refused():
    thin = file_of(Image.new("RGB", (60_000, 1)))
    blow = decoder(resize=Size(shortest_edge=256), crop=Size(height=32, width=32))
    with pytest.raises(InvalidRequest, match="found 60000 x 1 pixels, expected sides that differ less"):
        blow.decode(thin)


def test_the_upper_8_of_16_bits_are_used():
    """Unlike transformers, which clips all but the 256 darkest greys to white."""
    greys = np.asarray(picture(mode="L"))
    fine = (greys.astype(np.uint16) << 8) + 77
    found = decoder().decode(file_of(Image.fromarray(fine)))
    assert np.abs(found - expected(file_of(Image.fromarray(greys)))).max() <= 1e-6


def test_a_bmp_may_be_stored_top_down_or_run_length_encoded():
    rows = [bytes([row * 20 % 256]) * 8 for row in range(12)]
    bottom_up = bmp(8, 12, b"".join(reversed(rows)))
    top_down = bmp(8, -12, b"".join(rows))
    runs = bmp(8, 12, b"".join(bytes([8, row[0], 0, 0]) for row in reversed(rows)) + b"\0\1", runs=1)
    for file in (bottom_up, top_down, runs):
        found = decoder().decode(file)
        assert np.abs(found - expected(file)).max() <= 1e-6
        assert np.abs(found - expected(bottom_up)).max() <= 1e-6
