"""Finds the versions of models in the directory of artifacts, and notices changes of their files. Loads nothing."""

import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from protos.artifact import MANIFEST
from server.artifact import why_incomplete

Fingerprint = frozenset[tuple[str, int, int]]  # of each file: path, size, time of modification in nanoseconds


@dataclass(frozen=True)
class Found:
    """A version in the directory. `problem` says why it is not complete; it is empty if every file has its size."""

    directory: Path
    fingerprint: Fingerprint
    problem: str = ""


class Scanner:
    """Scans one directory again and again. A version is examined when it is new, or one of its files has changed."""

    def __init__(self, root: Path, names: Collection[str] = ()) -> None:
        """`names` are the models to look for; all if it is empty."""
        self._root, self._names = root, names
        self._last: dict[Path, Found] = {}

    def scan(self) -> dict[str, dict[int, Found]]:
        """Name → version → what was found. Blocks. Raises OSError if the directory cannot be read."""
        models = [path for path in _directories(self._root) if not self._names or path.name in self._names]
        found = {path.name: versions for path in sorted(models) if (versions := self._versions(path))}
        self._last = {version.directory: version for versions in found.values() for version in versions.values()}
        return found

    def _versions(self, model: Path) -> dict[int, Found]:
        try:
            found = [self._examine(path) for path in _directories(model) if self._is_version(path)]
        except FileNotFoundError:  # the directory of the model was removed during the scan
            found = []
        except OSError:  # it cannot be read now, which does not mean that the versions are gone
            found = [last for path, last in self._last.items() if path.parent == model]
        return {int(each.directory.name): each for each in sorted(found, key=lambda each: int(each.directory.name))}

    def _is_version(self, directory: Path) -> bool:
        """Whether there is a manifest, or was one: it may be about to be replaced."""
        named = re.fullmatch(r"0|[1-9]\d{0,17}", directory.name, re.ASCII) is not None
        return named and (os.path.exists(directory / MANIFEST) or directory in self._last)

    def _examine(self, directory: Path) -> Found:
        fingerprint = _fingerprint(directory)
        last = self._last.get(directory)
        if last is not None and last.fingerprint == fingerprint:
            return last
        return Found(directory, fingerprint, why_incomplete(directory))


def _directories(parent: Path) -> list[Path]:
    """The directories in a directory, without hidden ones: exports in progress, and what tools copy to at first."""
    with os.scandir(parent) as entries:
        return [Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _fingerprint(directory: Path) -> Fingerprint:
    """The fingerprint of the files that are there now, and can be read. Raises nothing: files come and go."""
    files = []
    for folder, _, names in os.walk(directory):
        for path in (Path(folder, name) for name in names):
            with suppress(OSError):  # it has just been renamed or removed
                status = path.stat()
                files.append((str(path.relative_to(directory)), status.st_size, status.st_mtime_ns))
    return frozenset(files)
