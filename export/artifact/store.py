"""The directory that the server reads, `DIR/<name>/<version>/`, which appears as a whole or not at all.

An export writes to a hidden directory beside the models and renames it. Nothing is ever overwritten. If an export dies,
its hidden directory remains without a lock, and the next export removes it.
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError
from protos import manifest as manifests
from protos.manifest_pb2 import File, Manifest

STAGING = ".export-"
READABLE = 0o755


@contextmanager
def staging(root: Path) -> Iterator[Path]:
    """A hidden, locked directory to write in. At the end of the block it is removed unless it was published."""
    root.mkdir(parents=True, exist_ok=True)
    remove_leftovers(root)
    directory, descriptor = create_locked(root)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def create_locked(root: Path) -> tuple[Path, int]:
    """Create a hidden directory and lock it; returns it and the descriptor of the lock."""
    while True:
        directory = Path(tempfile.mkdtemp(prefix=STAGING, dir=root))
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:  # another export removed it before it was locked
            continue
        if try_lock(descriptor) and directory.exists():
            return directory, descriptor
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the lock of a directory until the descriptor is closed; False if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def remove_leftovers(root: Path) -> None:
    """Remove the directories of exports that died; those of running exports are locked."""
    for directory in root.glob(f"{STAGING}*"):
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except FileNotFoundError:
            continue
        if try_lock(descriptor):
            shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def publish(staged: Path, root: Path, manifest: Manifest) -> Path:
    """Publish the staged files with the manifest as the next version of `manifest.name`; returns their directory."""
    manifest.files.extend(file_entry(path, staged) for path in sorted(staged.rglob("*")) if path.is_file())
    staged.chmod(READABLE)  # a temporary directory is readable by its owner only
    directory = root / manifest.name
    directory.mkdir(exist_ok=True)
    while True:
        manifest.version = max(versions(directory), default=0) + 1
        manifests.write_manifest(staged, manifest)
        target = directory / str(manifest.version)
        try:
            return staged.rename(target)
        except OSError as error:  # another export took this number first
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def file_entry(path: Path, root: Path) -> File:
    """The name, size and sha256 of one file."""
    name = path.relative_to(root).as_posix()
    return File(path=name, sha256=manifests.sha256_of(path), bytes=path.stat().st_size)


def versions(directory: Path) -> list[int]:
    """The existing versions of a model, sorted."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


def newest(root: Path, name: str) -> tuple[Path, Manifest] | None:
    """The highest version of a model and its manifest; None if there is none. ExportError if the server refuses it."""
    numbers = versions(root / name)
    if not numbers:
        return None
    directory = root / name / str(numbers[-1])
    return directory, read(directory)


def read(directory: Path) -> Manifest:
    """The manifest of an artifact that is whole and unaltered. ExportError names the fault."""
    with translated_errors():
        manifest = manifests.read_manifest(directory)
        manifests.check_artifact(directory, manifest)
        return manifest


def read_unsealed(directory: Path) -> tuple[bytes, Manifest]:
    """The same for an artifact whose manifest may have been edited, with the contents of the manifest."""
    with translated_errors():
        contents, manifest = manifests.read_unsealed(directory)
        manifests.check_artifact(directory, manifest)
        return contents, manifest


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate the errors of artifacts, which the server has in common, to ExportError."""
    try:
        yield
    except manifests.ArtifactError as error:
        raise ExportError(str(error)) from error


def check_name(name: str) -> None:
    """ExportError if `name` cannot be the name of a directory and of a model in requests."""
    allowed = name.replace("-", "").replace("_", "").replace(".", "")
    if not (allowed.isalnum() and name[0].isalnum() and name.isascii()) or name.endswith(".raw"):
        raise ExportError(f"--name: found {name!r}, expected letters, digits, '-', '_' and '.', not ending in .raw")
