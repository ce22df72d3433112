"""A file in memory with a limited number of reads.

Pillow takes a few reads, of microseconds each, for every part of an image file. A megabyte can hold a hundred thousand
empty parts, which take tenths of a second and many times their size in memory; the parts that cameras and programs
write have kilobytes each.
"""

import io

FREE_READS, BYTES_PER_READ = 4_000, 32  # a GIF can have text in blocks of about 80 bytes


class TooManyReads(ValueError):
    """The file took more reads than allowed."""


class MeteredReader(io.BytesIO):
    """A file whose `read` raises TooManyReads after 4,000 reads and one more for every 32 bytes."""

    def __init__(self, file: bytes) -> None:
        super().__init__(file)
        self._max_reads = self._remaining = FREE_READS + len(file) // BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._remaining -= 1
        if self._remaining < 0:
            raise TooManyReads(f"its parts are read in more than {self._max_reads} pieces")
        return super().read(size)
