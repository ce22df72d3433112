"""From a hub id to files on this machine: only those that an export reads, from the cache where they are there already.

Where the hub lies, which token opens it and where the cache is, is huggingface_hub's to know: HF_ENDPOINT, HF_TOKEN,
HF_HOME, HF_HUB_OFFLINE.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from export.errors import ExportError
from export.files import read_json
from export.layout import MODEL, TOKENIZER, WEIGHTS, has_weights

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def model(hub_id: str) -> Path:
    """The directory of a model's files, named after their commit. `owner/name`, or with @ a branch, tag or commit.

    The weights, which may be large, come last: a model that is not known here is refused before.
    """
    repository, _, revision = hub_id.partition("@")
    directory = snapshot(repository, revision, [*MODEL, *TOKENIZER])
    if has_weights(directory):
        return directory
    check_architecture(repository, directory)
    there = listing(repository, directory.name)
    wanted = next((group for group in WEIGHTS if group[0] in there), None)
    if wanted is None:
        known = ", ".join(group[0] for group in WEIGHTS)
        raise ExportError(f"{repository}: found {', '.join(there)}, expected weights in one of {known}")
    return snapshot(repository, directory.name, wanted)


def tokenizer(hub_id: str) -> Path:
    """The directory of a tokenizer's files."""
    repository, _, revision = hub_id.partition("@")
    return snapshot(repository, revision, TOKENIZER)


def snapshot(repository: str, revision: str, patterns: Sequence[str]) -> Path:
    """The files of a repository that match, at one commit."""
    # Imported here, for it takes a second that only a hub id needs.
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():  # its bars would fill a log
        disable_progress_bars()
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        found = "HF_TOKEN is set, and not let in" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        raise ExportError(
            f"{repository}: it is gated: accept its licence on the hub, and set HF_TOKEN to a token of yours ({found})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ExportError(f"{repository}: the hub has no such repository, or HF_TOKEN does not open it") from error
    except errors.RevisionNotFoundError as error:
        raise ExportError(f"{repository}: the hub has no revision {revision!r} of it") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise unreachable(repository) from error


def listing(repository: str, commit: str) -> list[str]:
    """The files of a repository."""
    from huggingface_hub import list_repo_files

    try:
        return sorted(list_repo_files(repository, revision=commit))
    except Exception as error:  # those of the HTTP library, too, which is another one from version to version
        raise unreachable(repository) from error


def unreachable(repository: str) -> ExportError:
    """What to say if there is no network."""
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return ExportError(
        f"{repository}: it is not in the local cache, or not whole, and the hub cannot be reached{offline}: "
        "found no such directory here either, expected a path that exists or a network"
    )


def check_architecture(repository: str, directory: Path) -> None:
    """ExportError if the configuration names a model that is not written here."""
    from models.checkpoints import CheckpointError, architecture  # brings torch: only for what is not there yet

    if not (directory / "config.json").is_file():
        raise ExportError(f"{repository}: found no config.json, expected a model in the Hugging Face layout")
    try:
        architecture(read_json(directory / "config.json"))
    except CheckpointError as error:
        raise ExportError(f"{repository}: {error}") from error
