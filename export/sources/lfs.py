"""Git LFS keeps large files outside of a repository. A clone without it has a small text file in place of each."""

from pathlib import Path

from export.errors import ExportError

POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(path: Path) -> None:
    """ExportError if a file is only a pointer of Git LFS."""
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise ExportError(
                f"{path}: found a pointer of Git LFS, expected the file itself: run `git lfs pull` in the repository"
            )
