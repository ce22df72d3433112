"""Reads and writes the manifest of an artifact, and checks the files that it lists. Exporter and server share this.

`manifest.json.sha256` has the digest of the manifest, in the format of sha256sum, and the manifest has the digests of
all other files. A changed byte in any file of an artifact is therefore detected.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToJson

from protos.artifact import (
    FORMAT_VERSION,
    FUNCTIONS,
    GOLDEN_IMAGES,
    GOLDEN_TENSORS,
    GOLDEN_TEXTS,
    MANIFEST,
    MANIFEST_DIGEST,
    PRECISIONS,
    TARGETS,
    TASKS,
    TRUNCATION_SIDES,
)
from protos.manifest_pb2 import File, Manifest
from protos.strict_json import JsonError, check_fields, read_object, shown, to_message


class ArtifactError(ValueError):
    """An artifact is damaged, or does not fit together. The text names the file, and the field if there is one."""


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact. ArtifactError if it is not as it was written, or of another format version."""
    contents, fields = _read_fields(directory)
    _check_digest(directory, contents)
    return to_message(fields, Manifest())


def read_unsealed(directory: Path) -> tuple[bytes, Manifest]:
    """The contents of a manifest that may have been edited since it was sealed, and the message in it."""
    contents, fields = _read_fields(directory)
    return contents, to_message(fields, Manifest())


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write a manifest and its digest."""
    contents = (MessageToJson(manifest, preserving_proto_field_name=True) + "\n").encode()
    (directory / MANIFEST).write_bytes(contents)
    seal(directory, contents)


def seal(directory: Path, contents: bytes) -> None:
    """Write the digest of a manifest with these contents. It replaces another one as a whole."""
    digest, temporary = directory / MANIFEST_DIGEST, directory / f".{MANIFEST_DIGEST}"
    temporary.write_text(digest_line(contents), "ascii")
    os.replace(temporary, digest)


def digest_line(contents: bytes) -> str:
    """The contents of `manifest.json.sha256`, which `sha256sum -c` reads."""
    return f"{hashlib.sha256(contents).hexdigest()}  {MANIFEST}\n"


def check_artifact(directory: Path, manifest: Manifest) -> None:
    """Check that an artifact is whole and unaltered. ArtifactError names the fault."""
    _check_place(directory, manifest)
    _check_names(directory, manifest)
    _check_labels(directory, manifest)
    check_files(directory, manifest)


def check_files(directory: Path, manifest: Manifest) -> None:
    """Check that every listed file has its exported contents, and that every used file is listed."""
    listed = {file.path for file in manifest.files}
    if unlisted := sorted(used_files(manifest) - listed):
        raise ArtifactError(f"{directory}: {', '.join(unlisted)} not among the files of the manifest")
    check_sizes(directory, manifest)
    for file in sorted(manifest.files, key=lambda file: file.bytes):  # damage in a small file is found at once
        with _named_errors(directory / file.path):
            found = sha256_of(directory / file.path)
        if found != file.sha256:
            raise ArtifactError(
                f"{directory / file.path}: found sha256 {found}, expected {file.sha256}: the file was altered; "
                "export again"
            )


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Check that every listed file has its exported size."""
    for file in manifest.files:
        _check_size(directory, file)


def used_files(manifest: Manifest) -> set[str]:
    """The files that a model of this manifest needs."""
    used = {GOLDEN_TENSORS, *(graph.file for graph in manifest.graphs), *filter(None, [manifest.text.tokenizer])}
    if manifest.HasField("image"):
        used.add(GOLDEN_IMAGES)
    if manifest.HasField("text"):
        used.add(GOLDEN_TEXTS)
    return used


def unlisted_files(directory: Path, manifest: Manifest) -> list[str]:
    """The files in the directory that do not belong to the artifact. Nothing reads them."""
    own = {MANIFEST, MANIFEST_DIGEST, *(file.path for file in manifest.files)}
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    return sorted(set(found) - own)


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Translate the errors of the system to ArtifactError."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}") from error


def _contents(path: Path) -> bytes:
    """The contents of a small file. A pipe would block until something writes to it."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ArtifactError(f"{path}: found no regular file")
    return path.read_bytes()


def _read_fields(directory: Path) -> tuple[bytes, dict[str, Any]]:
    """The contents of a manifest, and its fields, which are those of this format version and of the right types."""
    path = directory / MANIFEST
    with _named_errors(path):
        contents = _contents(path)
    try:
        fields = read_object(contents)
        version = fields.get("format_version")
        if version != FORMAT_VERSION or isinstance(version, float):
            found = "no format_version" if version is None else f"format_version {shown(version)}"
            raise ArtifactError(f"{path}: found {found}, expected {FORMAT_VERSION}: export again")
        check_fields(fields, Manifest)
    except JsonError as error:
        raise ArtifactError(f"{path}: {error}") from None
    return contents, fields


def _check_digest(directory: Path, contents: bytes) -> None:
    """Check a manifest against the digest beside it."""
    try:
        expected = _contents(directory / MANIFEST_DIGEST)
    except OSError as error:
        raise ArtifactError(
            f"{directory / MANIFEST_DIGEST}: {error.strerror}, expected the sha256 of {MANIFEST}: export again"
        ) from error
    wanted = digest_line(contents)
    if expected == wanted.encode():
        return
    found, line = wanted.split()[0], expected.decode("ascii", "replace")
    if len(expected) != len(wanted) or line[len(found) :] != wanted[len(found) :]:
        raise ArtifactError(
            f"{directory / MANIFEST_DIGEST}: found {shown(line)}, expected a sha256, two spaces, {MANIFEST} and the "
            "end of the line: export again"
        )
    raise ArtifactError(
        f"{directory / MANIFEST}: found sha256 {found}, expected {line.split()[0]} as in {MANIFEST_DIGEST}: the file "
        f"was altered; export again, or accept an intended change with: python -m export seal {directory}"
    )


def _check_place(directory: Path, manifest: Manifest) -> None:
    """Check that the directory has the name and the version of the model. It may be a link to another place."""
    place = Path(os.path.abspath(directory))
    if (manifest.name, str(manifest.version)) != (place.parent.name, place.name):
        raise ArtifactError(
            f"{directory}: found {manifest.name} version {manifest.version}, "
            f"expected {place.parent.name} version {place.name}"
        )


def _check_names(directory: Path, manifest: Manifest) -> None:
    """Check the fields whose values are names."""
    fields: list[tuple[str, str, Collection[str]]] = [("task", manifest.task, TASKS)]
    for number, graph in enumerate(manifest.graphs):
        fields.append((f"graphs[{number}].target", graph.target, TARGETS))
        fields.append((f"graphs[{number}].precision", graph.precision, PRECISIONS))
    if manifest.task.startswith("classify"):
        fields.append(("function_to_apply", manifest.function_to_apply, FUNCTIONS))
    if manifest.HasField("text"):
        fields.append(("text.truncation_side", manifest.text.truncation_side, TRUNCATION_SIDES))
    for name, found, expected in fields:
        if found not in expected:
            raise ArtifactError(
                f"{directory / MANIFEST}: {name}: found {found!r}, expected one of {', '.join(expected)}"
            )
    pairs = [(graph.target, graph.precision) for graph in manifest.graphs]
    for number, (target, precision) in enumerate(pairs):
        if (target, precision) in pairs[:number]:
            raise ArtifactError(
                f"{directory / MANIFEST}: graphs[{number}]: found {target} in {precision} twice, expected each "
                "precision of a target once"
            )


def _check_labels(directory: Path, manifest: Manifest) -> None:
    """Check that a classifier has a label for each of its classes, as many as its graphs give logits."""
    if not manifest.task.startswith("classify"):
        return
    labels = len(manifest.labels)
    for graph in manifest.graphs:
        for tensor in graph.outputs:
            if tensor.name == "logits" and list(tensor.shape)[-1:] != [str(labels)]:
                raise ArtifactError(
                    f"{directory / MANIFEST}: labels: found {labels}, expected {tensor.shape[-1]}, one for each class "
                    f"of {graph.file}: export again"
                )


def _check_size(directory: Path, file: File) -> None:
    """Check that a listed file is within the directory and has its exported size."""
    if Path(file.path).is_absolute() or ".." in Path(file.path).parts or "\0" in file.path:
        raise ArtifactError(f"{directory}: found file {file.path!r}, expected one inside the directory")
    path = directory / file.path
    with _named_errors(path):
        found = path.stat().st_size
    if not path.is_file():
        raise ArtifactError(f"{path}: found no regular file, expected {file.bytes:.0f} bytes")
    if found != file.bytes:
        raise ArtifactError(
            f"{path}: found {found} bytes, expected {file.bytes:.0f}: the file was altered; export again"
        )
