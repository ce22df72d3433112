"""Reads an artifact directory: the manifest and the files. Opens no session."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protos.artifact import MANIFEST
from protos.golden import GoldenCase, GoldenImage, read_cases, read_images, read_texts
from protos.manifest import ArtifactError, check_artifact, check_sizes, read_manifest, unlisted_files
from protos.manifest_pb2 import GoldenTexts, Graph, Manifest
from server.errors import BadArtifact

NAMED = 8  # files that a message names

__all__ = ["Artifact", "GoldenCase", "newest", "read_artifact", "versions", "why_incomplete"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """One version of one model, complete and unmodified since the export."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return str(self.manifest.version)

    def graphs(self, target: str) -> list[Graph]:
        """The graphs for a target, cpu or cuda, the default first."""
        return [graph for graph in self.manifest.graphs if graph.target == target]

    def graph(self, target: str, precision: str = "") -> Graph:
        """The graph for a target in a precision; by default its first graph. Raises BadArtifact if there is none."""
        for graph in self.graphs(target):
            if precision in ("", graph.precision):
                return graph
        found = ", ".join(f"{graph.target} in {graph.precision}" for graph in self.manifest.graphs) or "nothing"
        expected = f"{target} in {precision}" if precision else target
        raise BadArtifact(f"{self.directory}: found graphs for {found}, expected one for {expected}")

    def path(self, file: str) -> Path:
        return self.directory / file

    def graph_bytes(self, target: str, precision: str = "") -> int:
        """The size of a graph with its external weights, whose file names begin with that of the graph file."""
        name = self.graph(target, precision).file
        return int(sum(file.bytes for file in self.manifest.files if file.path.startswith(name)))

    def golden(self) -> list[GoldenCase]:
        """The golden cases, in order. Raises BadArtifact if one is missing."""
        with _translated_errors():
            return read_cases(self.directory, self.manifest)

    def golden_images(self) -> list[GoldenImage]:
        """The golden images, in order. Raises BadArtifact if one is missing."""
        with _translated_errors():
            return read_images(self.directory, self.manifest)

    def golden_texts(self) -> GoldenTexts:
        """The golden texts. Raises BadArtifact if one is missing."""
        with _translated_errors():
            return read_texts(self.directory, self.manifest)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate the errors of artifacts, which the exporter has in common, to BadArtifact."""
    try:
        yield
    except ArtifactError as error:
        raise BadArtifact(str(error)) from error


def read_artifact(directory: Path) -> Artifact:
    """Read the manifest and check it and every listed file (protos/manifest.py). Raises BadArtifact with the reason."""
    with _translated_errors():
        manifest = read_manifest(directory)
        check_artifact(directory, manifest)
    if ignored := unlisted_files(directory, manifest):
        log.info("%s: ignored files that the manifest does not list: %s", directory, ", ".join(ignored[:NAMED]))
    return Artifact(directory, manifest)


def why_incomplete(directory: Path) -> str:
    """Why an artifact is not whole, by its manifest and the sizes of its files; empty if it is. Reads no large file."""
    try:
        check_sizes(directory, read_manifest(directory))
    except ArtifactError as error:
        return str(error)
    return ""


def versions(root: Path, name: str) -> dict[int, Path]:
    """The versions of one model: number → directory, in ascending order."""
    found = {
        int(path.parent.name): path.parent
        for path in (root / name).glob(f"*/{MANIFEST}")
        if path.parent.name.isdecimal()
    }
    return dict(sorted(found.items()))


def newest(root: Path) -> dict[str, Path]:
    """Model name → directory of its highest version, by name."""
    names = sorted({path.parent.parent.name for path in root.glob(f"[!.]*/*/{MANIFEST}")})  # hidden: export in progress
    return {name: list(found.values())[-1] for name in names if (found := versions(root, name))}
