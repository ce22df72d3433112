"""A file in memory that can be read in so many pieces only: a reader in Python takes microseconds for each of them.

Image files consist of parts that each take a few reads. A megabyte can hold a hundred thousand empty parts: tenths of
seconds, and many times their size in memory. Those that cameras and programs write have kilobytes each.
"""

import io

FREE_PIECES, BYTES_PER_PIECE = 4_000, 32  # of the whole file: an image of GIF may have text in blocks of some 80 bytes


class TooManyReads(ValueError):
    """What the file is read in, and how many would have been fine."""


class MeteredReader(io.BytesIO):
    """Raises TooManyPieces from `read`."""

    def __init__(self, file: bytes) -> None:
        super().__init__(file)
        self._most = self._left = FREE_PIECES + len(file) // BYTES_PER_PIECE

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooManyReads(f"its parts are read in more than {self._most} pieces")
        return super().read(size)
