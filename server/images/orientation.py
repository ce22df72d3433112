"""The orientation of a picture in its EXIF data, and the transposition that makes the picture upright."""

from PIL import ExifTags, Image

from server.images import limits

Size = tuple[int, int]  # width and height, in pixels
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels

TRANSPOSITIONS: dict[object, Image.Transpose] = {  # EXIF orientation → the transposition that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (  # the transpositions that swap width and height
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
MIRRORED = (  # those that end with the right side on the left
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
)
UPSIDE_DOWN = (  # those that end with the bottom at the top
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.ROTATE_180,
    Image.Transpose.ROTATE_90,
    Image.Transpose.TRANSVERSE,
)


def transposition(picture: Image.Image) -> Image.Transpose | None:
    """The transposition that makes a picture upright; None if it is. ValueError if its EXIF data are too large.

    The orientation can also be in a text chunk with EXIF data. No other part of them is parsed.
    """
    size = max(len(picture.info.get(name, b"")) for name in ("exif", "Raw profile type exif"))
    if size > limits.MAX_EXIF_BYTES:
        raise ValueError(f"{size} bytes of EXIF data, more than {limits.MAX_EXIF_BYTES}")
    return TRANSPOSITIONS.get(picture.getexif().get(ExifTags.Base.Orientation))


def transposed_size(size: Size, by: Image.Transpose) -> Size:
    """The size of a picture after its transposition."""
    return size[::-1] if by in SIDEWAYS else size


def transposed_box(box: Box, size: Size, by: Image.Transpose) -> Box:
    """A box of a picture of this size, after its transposition."""
    left, top, right, bottom = box
    width, height = transposed_size(size, by)
    if by in SIDEWAYS:
        left, top, right, bottom = top, left, bottom, right
    if by in MIRRORED:
        left, right = width - right, width - left
    if by in UPSIDE_DOWN:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom
