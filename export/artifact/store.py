"""The directory that the server reads: `DIR/<name>/<version>/`, whole or not at all.

It is made in a hidden directory beside the models and appears by rename. Nothing is ever overwritten. A run that dies
leaves its hidden directory behind; whoever exports next finds that nobody holds its lock, and removes it.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from google.protobuf.json_format import MessageToJson, Parse, ParseError

from export.errors import ExportError
from protos.artifact import MANIFEST
from protos.manifest_pb2 import File, Manifest

STAGING = ".export-"
CHUNK_BYTES = 1 << 22
READABLE = 0o755


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A directory to write in, locked and hidden, that is gone at the end of the block unless it was published."""
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    directory, descriptor = hold(root)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def hold(root: Path) -> tuple[Path, int]:
    """A new hidden directory and its lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=STAGING, dir=root))
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # another export took it for a leftover in the moment before it is locked
            continue
        if locked(descriptor) and directory.exists():
            return directory, descriptor
        os.close(descriptor)


def locked(descriptor: int) -> bool:
    """Take the lock of a directory, which lasts as long as this process; False if somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_leftovers(root: Path) -> None:
    """Remove what dead runs have left behind; what a living one is writing is locked."""
    for directory in root.glob(f"{STAGING}*"):
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if locked(descriptor):
            shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def publish(staged: Path, root: Path, manifest: Manifest) -> Path:
    """Make the staged files version highest + 1 of `manifest.name`, with the manifest; returns where they now are."""
    manifest.files.extend(described(path, staged) for path in sorted(staged.rglob("*")) if path.is_file())
    staged.chmod(READABLE)  # temporary directories are the owner's alone
    directory = root / manifest.name
    directory.mkdir(exist_ok=True)
    while True:
        manifest.version = max(versions(directory), default=0) + 1
        text = MessageToJson(manifest, preserving_proto_field_name=True)
        (staged / MANIFEST).write_text(text + "\n", "utf-8")
        target = directory / str(manifest.version)
        try:
            return staged.rename(target)
        except OSError as error:  # another export was faster and has taken this number
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def described(path: Path, root: Path) -> File:
    """One file's name, size and sha256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return File(path=path.relative_to(root).as_posix(), sha256=digest.hexdigest(), bytes=path.stat().st_size)


def versions(directory: Path) -> list[int]:
    """The versions of a model that are there."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def newest(root: Path, name: str) -> tuple[Path, Manifest] | None:
    """The highest version of a model and its manifest; None if there is none that can be read."""
    for version in reversed(versions(root / name)):
        directory = root / name / str(version)
        try:
            return directory, Parse((directory / MANIFEST).read_text("utf-8"), Manifest(), ignore_unknown_fields=True)
        except (OSError, ParseError):
            return None
    return None


def check_name(name: str) -> None:
    """ExportError if `name` cannot be a directory and a model's name in requests."""
    allowed = name.replace("-", "").replace("_", "").replace(".", "")
    if not (allowed.isalnum() and name[0].isalnum() and name.isascii()) or name.endswith(".raw"):
        raise ExportError(f"--name: found {name!r}, expected letters, digits, '-', '_' and '.', not ending in .raw")
