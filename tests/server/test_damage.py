"""A changed byte in any file of an artifact is detected before the artifact is used, and the error names the file."""

import random
import shutil
from functools import partial

import pytest

from protos.artifact import MANIFEST, MANIFEST_DIGEST
from protos.manifest import ArtifactError, check_files
from server.artifact import read_artifact
from server.errors import BadArtifact

SMALL_BYTES = 10_000  # every byte of smaller files is changed
SAMPLES = 150  # of the bytes of each larger file
KINDS = ("tiny-bert", "tiny-vit", "tiny-gpt")  # texts, images, generation


@pytest.fixture(params=KINDS)
def copy(artifacts, tmp_path, request):
    """A copy of an artifact of each kind."""
    return shutil.copytree(artifacts / request.param / "1", tmp_path / request.param / "1")


def positions(name, size):
    """The bytes to change: all of them, or the first and the last and some between."""
    if size <= SMALL_BYTES:
        return range(size)
    drawn = random.Random(name).sample(range(size), SAMPLES)
    return sorted({0, 1, 7, 8, size - 1, *drawn})


def refuse(read, name):
    """Assert that an artifact is refused with the name of the file. (A changed digest is not that of its manifest.)"""
    with pytest.raises((ArtifactError, BadArtifact)) as refused:
        read()
    text = str(refused.value)
    assert f"/{name}: " in text or (name == MANIFEST_DIGEST and f" as in {name}: " in text)


def test_every_changed_byte_is_detected(copy):
    manifest = read_artifact(copy).manifest
    for path in sorted(copy.iterdir()):
        contents = path.read_bytes()
        if path.name in (MANIFEST, MANIFEST_DIGEST):
            read = partial(read_artifact, copy)
        else:  # the part of it that reads the other files
            read = partial(check_files, copy, manifest)
        with path.open("r+b", buffering=0) as file:
            for position in positions(path.name, len(contents)):
                changed = contents[position] ^ 1 << position % 8
                file.seek(position)
                file.write(bytes([changed]))
                refuse(read, path.name)
                file.seek(position)
                file.write(contents[position : position + 1])
    assert read_artifact(copy)


def test_every_truncated_longer_or_missing_file_is_detected(copy):
    for path in sorted(copy.iterdir()):
        contents = path.read_bytes()
        for damaged in (b"", contents[:1], contents[: len(contents) // 2], contents[:-1], contents + b"\0"):
            path.write_bytes(damaged)
            refuse(partial(read_artifact, copy), path.name)
        path.unlink()
        refuse(partial(read_artifact, copy), path.name)
        path.write_bytes(contents)
    assert read_artifact(copy)
