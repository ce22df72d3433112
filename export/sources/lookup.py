"""What the user names → files on this machine, and a digest that says whether they have changed.

Knows nothing of models and imports no torch, so that an export that is not needed costs nothing.
"""

import hashlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from export.errors import ExportError
from export.sources import hub
from export.sources.layout import CHARACTERS, files, tokenizer_files
from export.sources.modules import MODULES, encoder_folder

CHUNK_BYTES = 1 << 22
SAVED = (".pt", ".pth")  # what nanoGPT writes


@dataclass(frozen=True)
class Source:
    """`location` is what the user typed, `name` what the artifact is called unless the user says otherwise.

    `weights` is a directory in the Hugging Face layout or nanoGPT's file, `tokenizer` a directory or a file: that of
    the encoder, unless the user names another. `revision` is the commit that a hub id led to.
    """

    location: str
    name: str
    weights: Path
    tokenizer: Path
    revision: str = ""

    @property
    def directory(self) -> Path | None:
        """Where the files lie that say more about the model; nanoGPT's file has none."""
        return self.weights if self.weights.is_dir() else None

    @property
    def encoder(self) -> Path:
        """Where config.json and the weights lie: the directory, a folder within it, or nanoGPT's file."""
        return self.weights / encoder_folder(self.weights) if self.directory else self.weights

    def digest(self) -> str:
        """sha256 over the names and contents of the files that matter."""
        digest = hashlib.sha256()
        for name, path in self._named():
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()

    def _named(self) -> list[tuple[str, Path]]:
        """The files that matter, by names that do not depend on where they lie."""
        if self.directory:
            named = [(path.relative_to(self.weights).as_posix(), path) for path in files(self.weights)]
        else:
            named = [(self.weights.name, self.weights)]
        if self.tokenizer != self.encoder:
            named += [(f"tokenizer/{path.name}", path) for path in tokenizer_files(self.tokenizer)]
        return named


def bundled_directory() -> Path:
    """Where the models that come with Affinity lie."""
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
        source = of_directory(location, path) if path.is_dir() else of_file(location, path, chosen)
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
    """A model whose tokenizer lies beside its weights."""
    return Source(location, name, directory, directory / encoder_folder(directory), revision)


def of_directory(location: str, path: Path) -> Source:
    """A directory of the user's own."""
    source = in_directory(location, path.resolve().name, path)
    if not (source.encoder / "config.json").is_file():
        where = f"{source.encoder.name}/config.json, which {MODULES} names" if source.encoder != path else "config.json"
        raise ExportError(f"{location}: found no {where}, expected a directory in the Hugging Face layout")
    return source


def of_file(location: str, path: Path, tokenizer: Path | None) -> Source:
    """nanoGPT's file, which says nothing of the words: letters stand in a file of their own, GPT-2's words nowhere."""
    if path.suffix not in SAVED:
        raise ExportError(
            f"{location}: found a file, expected a directory in the Hugging Face layout, or nanoGPT's ckpt.pt"
        )
    letters = path.parent / CHARACTERS
    if tokenizer is None and not letters.is_file():
        raise ExportError(
            f"{location}: found no tokenizer, expected {CHARACTERS} beside it (nanoGPT keeps it in data/<dataset>) or "
            "--tokenizer with a directory, a file or a hub id (openai-community/gpt2 for the words of GPT-2)"
        )
    name = path.resolve().parent.name if path.stem == "ckpt" else path.stem
    return Source(location, name, path, tokenizer or letters)


def resolve_tokenizer(location: str) -> Path:
    """What the user named as a tokenizer."""
    path = Path(location).expanduser()
    if path.exists():
        return path
    if hub.HUB_ID.fullmatch(location):
        return hub.tokenizer(location)
    raise ExportError(
        f"--tokenizer: found nothing named {location}, expected a directory, a file (tokenizer.json, nanoGPT's "
        f"{CHARACTERS}) or a hub id (owner/name)"
    )
