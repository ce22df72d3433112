"""Reads an artifact directory: the manifest and the files. Opens no session."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import json_format
from safetensors import SafetensorError
from safetensors.numpy import load_file

from protos.artifact import (
    FORMAT_VERSION,
    GOLDEN_IMAGES,
    GOLDEN_TENSORS,
    GOLDEN_TEXTS,
    INPUT,
    MANIFEST,
    parse_golden_key,
)
from protos.manifest_pb2 import Graph, Manifest
from server.arrays import Array
from server.errors import BadArtifact


@dataclass(frozen=True)
class GoldenCase:
    """Inputs of a graph, and the outputs of PyTorch for them in fp32."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


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

    def graph(self, target: str) -> Graph:
        """The graph for a target: cpu or cuda. Raises BadArtifact if there is none."""
        for graph in self.manifest.graphs:
            if graph.target == target:
                return graph
        targets = ", ".join(graph.target for graph in self.manifest.graphs)
        raise BadArtifact(f"{self.directory}: found graphs for {targets or 'nothing'}, expected one for {target}")

    def path(self, file: str) -> Path:
        return self.directory / file

    def graph_bytes(self, target: str) -> int:
        """The size of a graph with its external weights, whose file names share the stem of the graph file."""
        stem = Path(self.graph(target).file).stem
        return sum(self.path(file.path).stat().st_size for file in self.manifest.files if file.path.startswith(stem))

    def golden(self) -> list[GoldenCase]:
        """The golden cases, in order."""
        try:
            tensors = load_file(self.path(GOLDEN_TENSORS))
        except (OSError, SafetensorError) as error:
            raise BadArtifact(f"{self.path(GOLDEN_TENSORS)}: {error}") from error
        cases: dict[int, GoldenCase] = {}
        for key, tensor in tensors.items():
            number, side, name = parse_golden_key(key)
            case = cases.setdefault(number, GoldenCase({}, {}))
            (case.inputs if side == INPUT else case.outputs)[name] = tensor
        if not cases:
            raise BadArtifact(f"{self.path(GOLDEN_TENSORS)}: found no cases, expected at least one")
        return [cases[number] for number in sorted(cases)]


def read_artifact(directory: Path) -> Artifact:
    """Read the manifest and check every file against it. Raises BadArtifact with the reason."""
    path = directory / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadArtifact(f"{path}: {error.strerror}") from error
    try:
        # Ignore unknown fields, so that an artifact of a later format fails at the version check below.
        manifest = json_format.Parse(text, Manifest(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise BadArtifact(f"{path}: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise BadArtifact(
            f"{path}: found format_version {manifest.format_version}, expected {FORMAT_VERSION}: export again"
        )
    artifact = Artifact(directory, manifest)
    location = directory.resolve()
    if (artifact.name, artifact.version) != (location.parent.name, location.name):
        raise BadArtifact(
            f"{directory}: found {artifact.name} version {artifact.version}, "
            f"expected {location.parent.name} version {location.name}"
        )
    _check_labels(artifact)
    _check_files(artifact)
    return artifact


def _check_labels(artifact: Artifact) -> None:
    """Check that a classifier has a label for each of its classes, as many as its graphs give logits."""
    if not artifact.manifest.task.startswith("classify"):
        return
    labels = len(artifact.manifest.labels)
    for graph in artifact.manifest.graphs:
        for tensor in graph.outputs:
            if tensor.name == "logits" and tensor.shape[-1] != str(labels):
                raise BadArtifact(
                    f"{artifact.directory / MANIFEST}: labels: found {labels}, expected {tensor.shape[-1]}, one for "
                    f"each class of {graph.file}: export again"
                )


def _check_files(artifact: Artifact) -> None:
    """Check that every listed file has its exported contents, and that every used file is listed."""
    listed = set()
    for file in artifact.manifest.files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise BadArtifact(f"{artifact.directory}: found file {file.path!r}, expected one inside the directory")
        listed.add(file.path)
        try:
            with artifact.path(file.path).open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BadArtifact(f"{artifact.path(file.path)}: {error.strerror}") from error
        if digest != file.sha256:
            raise BadArtifact(
                f"{artifact.path(file.path)}: found sha256 {digest}, expected {file.sha256}: the file was altered; "
                "export again"
            )
    text = artifact.manifest.text
    used = {GOLDEN_TENSORS, *(graph.file for graph in artifact.manifest.graphs), *filter(None, [text.tokenizer])}
    if artifact.manifest.HasField("image"):
        used.add(GOLDEN_IMAGES)
    if artifact.manifest.HasField("text"):
        used.add(GOLDEN_TEXTS)
    if unlisted := used - listed:
        raise BadArtifact(f"{artifact.directory}: {', '.join(sorted(unlisted))} not among the files of the manifest")


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
