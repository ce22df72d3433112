"""Files that are read again after they have changed. A replacement that cannot be used changes nothing."""

import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, TypeVar

from server.errors import AffinityError

MAX_BYTES = 1 << 20

T = TypeVar("T")
Contents = Mapping[str, bytes]  # by the flag that names the file

log = logging.getLogger("server")


class BadFile(AffinityError):
    """A file that a setting names and that cannot be used. Names the flag and the file, and never quotes the file."""


class WatchedFiles(Generic[T]):
    """The value that some files describe together, such as a certificate and its key."""

    def __init__(self, files: Mapping[str, Path], parse: Callable[[Contents], T]) -> None:
        """Read the files, by their flags. Raises BadFile, as `parse` may."""
        self._files, self._parse = files, parse
        contents = {flag: _read(flag, file) for flag, file in files.items()}
        self.value = parse(contents)
        self._last: Contents | str = contents  # contents, or the error, of the last refresh
        self._judged: Contents | str = contents  # contents, or the error, that were last used or refused

    def refresh(self) -> bool:
        """Read the files again. Returns True if there is a new value. Other threads may use the value meanwhile.

        Contents that changed are used, or refused in the log, when two refreshes in a row have found them: files that
        are just being written are not complete.
        """
        try:
            found: Contents | str = {flag: _read(flag, file) for flag, file in self._files.items()}
        except BadFile as error:
            found = str(error)
        settled, self._last = found == self._last, found
        if not settled or found == self._judged:
            return False
        self._judged = found
        try:
            if isinstance(found, str):
                raise BadFile(found)
            self.value = self._parse(found)
        except BadFile as error:
            log.error("%s; the contents of before stay in use", error)
            return False
        log.info(
            "read again because of a change: %s", ", ".join(f"{flag} {file}" for flag, file in self._files.items())
        )
        return True


def _read(flag: str, file: Path) -> bytes:
    try:
        with open(file, "rb", opener=_open_at_once) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BadFile(f"{flag} {file}: found no regular file, which could be read again after a change")
            contents = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadFile(f"{flag} {file}: {error.strerror}") from error
    if len(contents) > MAX_BYTES:
        raise BadFile(f"{flag} {file}: found more than {MAX_BYTES} bytes")
    return contents


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a pipe would block otherwise, until something writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)
