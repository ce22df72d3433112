"""A changed byte in any file of an artifact is detected before the artifact is used, and the error names the file."""

import random
import re
import shutil

import pytest

from protos.artifact import MANIFEST, MANIFEST_DIGEST
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


def refuse(directory, name):
    """Assert that the artifact is refused with the name of the file. (A changed digest does not match its manifest.)"""
    with pytest.raises(BadArtifact) as refused:
        read_artifact(directory)
    named = f"({re.escape(MANIFEST)}|{re.escape(MANIFEST_DIGEST)})" if name == MANIFEST_DIGEST else re.escape(name)
    assert re.search(f"{named}: ", str(refused.value)), refused.value


def test_every_changed_byte_is_detected(copy):
    assert read_artifact(copy)
    for path in sorted(copy.iterdir()):
        contents = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for position in positions(path.name, len(contents)):
                changed = contents[position] ^ 1 << position % 8
                file.seek(position)
                file.write(bytes([changed]))
                refuse(copy, path.name)
                file.seek(position)
                file.write(contents[position : position + 1])
    assert read_artifact(copy)


def test_every_truncated_longer_or_missing_file_is_detected(copy):
    for path in sorted(copy.iterdir()):
        contents = path.read_bytes()
        for damaged in (b"", contents[:1], contents[: len(contents) // 2], contents[:-1], contents + b"\0"):
            path.write_bytes(damaged)
            refuse(copy, path.name)
        path.unlink()
        refuse(copy, path.name)
        path.write_bytes(contents)
    assert read_artifact(copy)
