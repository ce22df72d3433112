"""From the name that the user typed to files on this machine, and a digest that detects changes.

Knows nothing of models and imports no torch, so that an unneeded export takes no time.
"""

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from export.errors import ExportError
from export.sources import hub
from export.sources.layout import CHARACTERS, files, tokenizer_files
from export.sources.lfs import check_no_pointer
from export.sources.modules import MODULES, encoder_folder

CHUNK_BYTES = 1 << 22
NANOGPT_SUFFIXES = (".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """`location` is the text that the user typed, `name` the default name of the artifact.

    `weights` is a directory in the Hugging Face layout or nanoGPT's file, `tokenizer` a directory or a file: by default
    the encoder's directory. `revision` is the commit of a hub id.
    """

    location: str
    name: str
    weights: Path
    tokenizer: Path
    revision: str = ""

    @property
    def directory(self) -> Path | None:
        """The directory of the model's files; None for nanoGPT's file."""
        return self.weights if self.weights.is_dir() else None

    @property
    def encoder(self) -> Path:
        """The directory with config.json and the weights (`directory` or a folder within it), or nanoGPT's file."""
        return self.weights / encoder_folder(self.weights) if self.directory else self.weights

    def digest(self) -> str:
        """sha256 over the names and contents of the files that an export reads. ExportError for pointers of Git LFS."""
        digest = hashlib.sha256()
        for name, path in self._named():
            check_no_pointer(path)
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def _named(self) -> list[tuple[str, Path]]:
        """The files that an export reads, by names that do not depend on their location."""
        if self.directory:
            named = [(path.relative_to(self.weights).as_posix(), path) for path in files(self.weights)]
        else:
            named = [(self.weights.name, self.weights)]
        if self.tokenizer != self.encoder:
            named += [(f"tokenizer/{path.name}", path) for path in tokenizer_files(self.tokenizer)]
        return named


def bundled_directory() -> Path:
    """The directory of the models that come with Affinity."""
    spec = find_spec("models")
    if spec is None or not spec.submodule_search_locations:
        raise AssertionError("the package models is not there: this is a bug")
    return Path(spec.submodule_search_locations[0]) / "pretrained"


def bundled() -> list[str]:
    """The names of the models that come with Affinity."""
    return sorted(path.parent.name for path in bundled_directory().glob("*/config.json"))


def resolve(location: str, tokenizer: str | None = None) -> Source:
    """Find a bundled name, a local directory or file, or a hub id, in this order; ExportError if it is none of them.

    `tokenizer` names a tokenizer in place of the source's own: a directory, a file or a hub id.
    """
    chosen = resolve_tokenizer(tokenizer) if tokenizer else None
    if location in bundled():
        directory = bundled_directory() / location
        source = in_directory(location, location, directory)
    elif (path := Path(location).expanduser()).exists():
        source = local_directory(location, path) if path.is_dir() else nanogpt_file(location, path, chosen)
    elif hub.HUB_ID.fullmatch(location):
        directory = hub.model(location)
        name = location.partition("@")[0].split("/")[1]
        source = in_directory(location, name, directory, revision=directory.name)
    else:
        known = ", ".join(bundled()) or "none here"
        raise ExportError(
            f"{location}: found nothing of this name, expected a bundled model ({known}), a directory, nanoGPT's "
            "ckpt.pt, or a hub id (owner/name)"
        )
    return replace(source, tokenizer=chosen) if chosen else source


def in_directory(location: str, name: str, directory: Path, revision: str = "") -> Source:
    """A model with its tokenizer beside the weights."""
    return Source(location, name, directory, directory / encoder_folder(directory), revision)


def local_directory(location: str, path: Path) -> Source:
    """A local directory."""
    source = in_directory(location, path.resolve().name, path)
    if not (source.encoder / "config.json").is_file():
        where = f"{source.encoder.name}/config.json, which {MODULES} names" if source.encoder != path else "config.json"
        raise ExportError(f"{location}: found no {where}, expected a directory in the Hugging Face layout")
    return source


def nanogpt_file(location: str, path: Path, tokenizer: Path | None) -> Source:
    """nanoGPT's file, which has no tokenizer: characters are in a file beside it, GPT-2's tokens are in no file."""
    if path.suffix not in NANOGPT_SUFFIXES:
        raise ExportError(
            f"{location}: found a file, expected a directory in the Hugging Face layout, or nanoGPT's ckpt.pt"
        )
    characters = path.parent / CHARACTERS
    if tokenizer is None and not characters.is_file():
        raise ExportError(
            f"{location}: found no tokenizer, expected {CHARACTERS} beside it (nanoGPT keeps it in data/<dataset>) or "
            "--tokenizer with a directory, a file or a hub id (openai-community/gpt2 for the tokens of GPT-2)"
        )
    name = path.resolve().parent.name if path.stem == "ckpt" else path.stem
    return Source(location, name, path, tokenizer or characters)


def resolve_tokenizer(location: str) -> Path:
    """The tokenizer that the user named: a local path, or the files of a hub id."""
    path = Path(location).expanduser()
    if path.exists():
        return path
    if hub.HUB_ID.fullmatch(location):
        return hub.tokenizer(location)
    raise ExportError(
        f"--tokenizer: found nothing named {location}, expected a directory, a file (tokenizer.json, nanoGPT's "
        f"{CHARACTERS}) or a hub id (owner/name)"
    )
