"""A Unix-domain socket that another library binds. It takes the place of one that a dead server has left."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from server.host.listening import CannotListen

SCHEME = "unix:"
MODE = 0o660  # the owner and the group may connect
MAX_PATH_BYTES = 107 - len(".") - len(".4194304")  # of sun_path, for the name that the socket has at first


class UnixSocket:
    """A socket file. It is bound under another name, so that it replaces an old file at once, in its final mode.

    A library that removes the file which it bound, as gRPC does, then never removes that of a server which has already
    taken over.
    """

    def __init__(self, path: Path) -> None:
        """Raises CannotListen if there is a file that is not a socket, or a server that listens."""
        self.path = path
        self.bound = path.with_name(f".{path.name}.{os.getpid()}")
        self._inode = 0
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise self._error(f"found a path of {len(os.fsencode(path))} bytes, expected at most {MAX_PATH_BYTES}")
        if not str(path).isprintable():
            raise self._error("found control characters or bytes that are not UTF-8")
        try:
            self._check()
        except OSError as error:
            raise self._error(os.strerror(error.errno or 0)) from error

    @contextmanager
    def binding(self) -> Iterator[str]:
        """Bind the socket under the name that the block gets. After the block, it has the path of this object."""
        with suppress(FileNotFoundError):
            self.bound.unlink()
        umask = os.umask(0o777 & ~MODE)
        try:
            yield str(self.bound)
        finally:
            os.umask(umask)
        self._inode = self.bound.stat().st_ino
        self.bound.rename(self.path)

    def remove(self) -> None:
        """Remove the file, unless another server has replaced it."""
        with suppress(OSError):
            if self._inode and self.path.stat().st_ino == self._inode:
                self.path.unlink()

    def _check(self) -> None:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise self._error("found a file that is not a socket")
        with socket.socket(socket.AF_UNIX) as client, suppress(FileNotFoundError, ConnectionRefusedError):
            client.setblocking(False)
            client.connect(str(self.path))
            raise self._error("another process listens there")
        with socket.socket(socket.AF_UNIX) as trial:  # for the reason if that fails
            trial.bind(str(self.bound))
            self.bound.unlink()

    def _error(self, reason: str) -> CannotListen:
        return CannotListen(f"cannot listen on {SCHEME}{self.path}: {reason}; --listen chooses another")
