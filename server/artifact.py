"""An artifact directory as the server sees it. Knows the manifest and the files; opens no session."""

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
    """Inputs of a graph, and what PyTorch made of them in fp32."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class Artifact:
    """One version of one model, whole and unaltered as the exporter left it."""

    directory: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return str(self.manifest.version)

    def graph(self, target: str) -> Graph:
        """The graph for a kind of machine: cpu or cuda. BadArtifact if there is none."""
        for graph in self.manifest.graphs:
            if graph.target == target:
                return graph
        targets = ", ".join(graph.target for graph in self.manifest.graphs)
        raise BadArtifact(f"{self.directory}: found graphs for {targets or 'nothing'}, expected one for {target}")

    def path(self, file: str) -> Path:
        return self.directory / file

    def graph_bytes(self, target: str) -> int:
        """Of the graph for a kind of machine with its weights, which may lie beside it: all their names begin alike."""
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
    """Read the manifest and check every file against it; BadArtifact with the reason."""
    path = directory / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadArtifact(f"{path}: {error.strerror}") from error
    try:
        # Fields of a later format are unknown here: the check of the format comes first and says what to do.
        manifest = json_format.Parse(text, Manifest(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise BadArtifact(f"{path}: {error}") from error
    if manifest.format_version != FORMAT_VERSION:
        raise BadArtifact(
            f"{path}: found format_version {manifest.format_version}, expected {FORMAT_VERSION}: export again"
        )
    artifact = Artifact(directory, manifest)
    stands = directory.resolve()
    if (artifact.name, artifact.version) != (stands.parent.name, stands.name):
        raise BadArtifact(
            f"{directory}: found {artifact.name} version {artifact.version}, "
            f"expected {stands.parent.name} version {stands.name}"
        )
    _check_files(artifact)
    return artifact


def _check_files(artifact: Artifact) -> None:
    """Every file is there with the contents it was exported with, and every file that is used is listed."""
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
    """The versions of one model: number → directory, lowest first."""
    found = {
        int(path.parent.name): path.parent
        for path in (root / name).glob(f"*/{MANIFEST}")
        if path.parent.name.isdecimal()
    }
    return dict(sorted(found.items()))


def newest(root: Path) -> dict[str, Path]:
    """Model name → directory of its highest version, by name."""
    names = sorted({path.parent.parent.name for path in root.glob(f"[!.]*/*/{MANIFEST}")})  # hidden: being exported
    return {name: list(found.values())[-1] for name in names if (found := versions(root, name))}
