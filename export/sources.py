"""What the user names → a directory of files on this machine, and a digest that says whether it has changed.

Knows nothing of models and imports no torch, so that an export that is not needed costs nothing.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from export.errors import ExportError

# The files that can matter. A hub repository holds more: other frameworks' weights, cards, logs.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "*_Pooling/config.json",
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CHUNK_BYTES = 1 << 22


@dataclass(frozen=True)
class Source:
    """`location` is what the user typed, `name` what the artifact is called unless the user says otherwise."""

    location: str
    name: str
    directory: Path

    def digest(self) -> str:
        """sha256 over the names and contents of the files that matter."""
        digest = hashlib.sha256()
        for path in files(self.directory):
            name = path.relative_to(self.directory).as_posix()
            digest.update(f"{name}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        return digest.hexdigest()


def files(directory: Path) -> list[Path]:
    """The files of `directory` that can matter, sorted."""
    return sorted({path for pattern in PATTERNS for path in directory.glob(pattern)})


def bundled_directory() -> Path:
    """Where the models that come with Affinity lie."""
    spec = find_spec("models")
    if spec is None or not spec.submodule_search_locations:
        raise AssertionError("the package models is not there: this is a bug")
    return Path(spec.submodule_search_locations[0]) / "pretrained"


def bundled() -> list[str]:
    """The names of the models that come with Affinity."""
    return sorted(path.parent.name for path in bundled_directory().glob("*/config.json"))


def resolve(location: str) -> Source:
    """Find a bundled name, a local directory or a hub id, in this order; ExportError if it is none of them.

    A hub id may end in `@` and a revision: a branch, a tag or a commit.
    """
    if location in bundled():
        return Source(location, location, bundled_directory() / location)
    path = Path(location).expanduser()
    if path.is_dir():
        return local(location, path)
    if path.exists():
        raise ExportError(f"{location}: found a file, expected a directory in the Hugging Face layout")
    repository, _, revision = location.partition("@")
    if HUB_ID.fullmatch(repository):
        return Source(location, repository.split("/")[1], download(repository, revision or None))
    known = ", ".join(bundled()) or "none here"
    raise ExportError(
        f"{location}: found nothing of this name, expected a bundled model ({known}), a directory, "
        "or a hub id (owner/name)"
    )


def local(location: str, path: Path) -> Source:
    """A directory of the user's own."""
    if not (path / "config.json").is_file():
        raise ExportError(f"{location}: found no config.json, expected a directory in the Hugging Face layout")
    return Source(location, path.resolve().name, path)


def download(repository: str, revision: str | None) -> Path:
    """The files of a hub repository that matter, from the cache where they are there already."""
    # Imported here, for it takes a second that only a hub id needs.
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(PATTERNS)))
    except errors.GatedRepoError as error:
        raise ExportError(f"{repository}: its licence must be accepted on the hub, and HF_TOKEN set") from error
    except errors.RepositoryNotFoundError as error:
        raise ExportError(f"{repository}: the hub has no such repository, or HF_TOKEN does not open it") from error
    except errors.RevisionNotFoundError as error:
        raise ExportError(f"{repository}: the hub has no revision {revision!r} of it") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise ExportError(
            f"{repository}: it is not in the local cache and the hub cannot be reached{offline}: "
            "found no such directory here either, expected a path that exists or a network"
        ) from error
