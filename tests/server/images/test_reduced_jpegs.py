"""Large JPEG files are decoded at a smaller scale, with nearly the same pixel values."""

from functools import cache

import numpy as np
import pytest
from PIL import Image

from protos.manifest_pb2 import Size
from server.errors import InvalidRequest
from server.images import orientation
from server.images.file import decode, read_header
from tests.server.images.files import GREY_LEVEL, decoder, expected, file_of, picture

ORIENTATION = 0x0112  # in the EXIF data


@cache
def scene():
    """A picture of 4 megapixels, with muted colours and the noise of a camera. No scale divides its sides."""
    smooth = np.asarray(picture(2501, 1667).convert("L").convert("RGB")).astype(np.float32) * (0.9, 0.8, 0.7)
    noisy = smooth + np.random.default_rng(1).normal(0, 4, (1667, 2501, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@cache
def photograph(*, turned=1, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    return file_of(scene(), "JPEG", exif=exif, **options)


def error(file, gap, options=None, **fields):
    """The largest difference from the pixel values of transformers, in grey levels."""
    found = decoder(reducing_gap=gap, **fields).decode(file)
    return np.abs(found - expected(file, **(options or {}))).max() / GREY_LEVEL


@pytest.mark.parametrize("turned", range(1, 9))
def test_every_orientation_is_within_two_grey_levels_of_transformers(turned):
    assert error(photograph(turned=turned), gap=4) <= 2


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_every_kind_of_jpeg_is_within_two_grey_levels_of_transformers(options):
    assert error(photograph(**options), gap=4) <= 2


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"resample": "bicubic"}, {"resample": 3}),
        ({"resample": "lanczos"}, {"resample": 1}),
        (
            {"resize": Size(shortest_edge=36), "crop": Size(height=32, width=32)},
            {"size": {"shortest_edge": 36}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        ),
    ],
)
@pytest.mark.parametrize("turned", [1, 6])
def test_every_resize_is_within_two_grey_levels_of_transformers(fields, options, turned):
    assert error(photograph(turned=turned), 4, options, **fields) <= 2


@pytest.mark.parametrize("resample", ["nearest", "box", "hamming"])
def test_other_resampling_uses_the_whole_picture(resample):
    full, reduced = (decoder(resample=resample, reducing_gap=gap).decode(photograph()) for gap in (0, 4))
    assert np.array_equal(full, reduced)


@pytest.mark.parametrize(
    ("gap", "decoded"), [(0, (2501, 1667)), (40, (2501, 1667)), (20, (1251, 834)), (10, (626, 417)), (1, (313, 209))]
)
def test_the_scale_is_the_smallest_that_leaves_the_gap(gap, decoded):
    header = decoder(reducing_gap=gap).header(photograph())
    assert (header.size, header.decoded) == ((2501, 1667), decoded)


def test_less_memory_is_reserved_for_a_smaller_scale():
    full, reduced = (decoder(reducing_gap=gap).header(photograph()).decoding_bytes for gap in (0, 4))
    assert reduced < full / 10


def test_smaller_files_and_other_formats_are_decoded_in_full():
    small, png = file_of(scene().resize((2000, 1500)), "JPEG"), file_of(scene(), compress_level=1)
    assert decoder(reducing_gap=1).header(small).decoded == (2000, 1500)
    assert decoder(reducing_gap=1).header(png).decoded == (2501, 1667)
    assert error(small, gap=1) <= 1


def test_a_rectangle_is_large_enough_on_its_side():
    wide = decoder(resize=Size(height=32, width=64), width=64, reducing_gap=10)
    for turned in (1, 6):
        assert wide.decode(photograph(turned=turned)).shape == (3, 32, 64)
        assert wide.header(photograph(turned=turned)).decoded == (1251, 834)


def test_a_jpeg_with_very_different_sides_is_refused_by_its_field():
    thin = file_of(Image.new("L", (60_000, 70)), "JPEG")
    blow = decoder(resize=Size(shortest_edge=256), crop=Size(height=32, width=32), reducing_gap=4)
    with pytest.raises(InvalidRequest, match=r"images\[3\]: found 60000 x 70 pixels, expected sides that differ less"):
        blow.header(thin, "images[3]")


@pytest.mark.parametrize("size", [(1500, 1), (1, 1500), (750, 2)])
def test_a_jpeg_of_few_rows_above_the_limit_is_decoded(size):
    picture = decode(file_of(Image.new("L", size), "JPEG"), max_pixels=1000)
    assert picture.size == size
    assert min(picture.image.size) == 1


def test_a_jpeg_above_the_limit_is_halved_whatever_the_gap():
    """A crop shows whether the sides after the resize are those of the file."""
    assert read_header(photograph(), max_pixels=2_000_000).decoded == (1251, 834)
    assert decoder(max_pixels=2_000_000, reducing_gap=40).header(photograph()).decoded == (1251, 834)
    crop = {"resize": Size(shortest_edge=36), "crop": Size(height=32, width=32)}
    whole, halved = (decoder(max_pixels=limit, **crop).decode(photograph()) for limit in (5_000_000, 2_000_000))
    assert np.abs(whole - halved).max() <= 2 * GREY_LEVEL


@pytest.mark.parametrize("transposition", orientation.TRANSPOSITIONS.values())
def test_a_box_moves_with_its_picture(transposition):
    pixels = np.zeros((30, 50), np.uint8)
    pixels[:29, :48] = 255
    turned = Image.fromarray(pixels).transpose(transposition)
    assert orientation.transposed_box((0, 0, 48, 29), (50, 30), transposition) == turned.getbbox()
    assert orientation.transposed_size((50, 30), transposition) == turned.size
