"""Change an artifact in a test, as a user may do by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protos import manifest
from protos.artifact import MANIFEST


def read_fields(directory: Path) -> dict[str, Any]:
    """The fields of a manifest."""
    return json.loads((directory / MANIFEST).read_text("utf-8"))


def change_manifest(directory: Path, change: Callable[[dict[str, Any]], object] | None = None, **fields: Any) -> None:
    """Set fields of a manifest, or call a function that changes them; then write the manifest with its digest."""
    changed = read_fields(directory) | fields
    if change is not None:
        change(changed)
    write_sealed(directory, json.dumps(changed).encode())


def next_version(root: Path, name: str, **fields: Any) -> Path:
    """Another version of a model with changed fields, as an export would add it: whole, by a rename."""
    version = max(int(path.name) for path in (root / name).iterdir() if path.name.isdecimal()) + 1
    temporary = shutil.copytree(root / name / "1", root / f".{name}-{version}")
    change_manifest(temporary, version=version, **fields)
    return temporary.rename(root / name / str(version))


def write_sealed(directory: Path, contents: bytes) -> None:
    """Write a manifest with any contents, and their digest."""
    (directory / MANIFEST).write_bytes(contents)
    manifest.seal(directory, contents)


def replace_file(directory: Path, name: str, contents: bytes) -> None:
    """Write a file of an artifact, and correct its size and digest in the manifest."""
    (directory / name).write_bytes(contents)

    def relist(fields: dict[str, Any]) -> None:
        others = [file for file in fields["files"] if file["path"] != name]
        digest = manifest.sha256_of(directory / name)
        fields["files"] = [*others, {"path": name, "sha256": digest, "bytes": len(contents)}]

    change_manifest(directory, relist)


def unlist(directory: Path, name: str) -> None:
    """Remove a file from the list in the manifest, but not from the directory."""
    change_manifest(directory, lambda fields: fields.update(files=[f for f in fields["files"] if f["path"] != name]))
