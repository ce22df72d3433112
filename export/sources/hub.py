"""From a hub id to files on this machine: only those that an export reads, from the local cache if it has them.

huggingface_hub reads the address of the hub, the token and the location of the cache: HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError
from export.sources import modules
from export.sources.json_files import read_json
from export.sources.layout import MODEL, TOKENIZER, TOP_LEVEL, WEIGHTS, is_complete, module_patterns
from export.sources.modules import WEIGHT_FILES, WEIGHTED, Module, as_encoder, encoder_folder

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
HINTS = {  # by HTTP status
    401: "expected a token that is valid in HF_TOKEN (or none, for public repositories): it may have expired",
    403: "expected a token in HF_TOKEN that may read it",
    429: "the hub limits the rate of requests: try again later, with HF_TOKEN set",
}


def model(hub_id: str) -> Path:
    """The directory of a model's files, named after their commit. `hub_id` is owner/name[@branch, tag or commit].

    The weights, which may be large, are downloaded last, after the architecture has been checked.
    """
    repository, _, revision = hub_id.partition("@")
    directory = snapshot(repository, revision, [*MODEL, *TOP_LEVEL, *TOKENIZER])
    if is_complete(directory):
        return directory
    if in_folders := module_patterns(directory):
        directory = snapshot(repository, directory.name, in_folders)
    check_architecture(repository, directory)
    files = listing(repository, directory.name)
    encoder, *others = modules.read(directory) or [Module(modules.TRANSFORMER, "")]
    wanted = weights(repository, files, [tuple(map(encoder.file, group)) for group in WEIGHTS])
    for module in others:
        if module.kind in WEIGHTED:
            wanted += weights(repository, files, [(module.file(name),) for name in WEIGHT_FILES])
    return snapshot(repository, directory.name, wanted)


def weights(repository: str, files: Sequence[str], groups: Sequence[tuple[str, ...]]) -> list[str]:
    """The first group of files whose first file the repository has. ExportError if there is none."""
    found = next((group for group in groups if group[0] in files), None)
    if found is None:
        known = ", ".join(group[0] for group in groups)
        raise ExportError(f"{repository}: found {', '.join(files)}, expected weights in one of {known}")
    return list(found)


def tokenizer(hub_id: str) -> Path:
    """The directory of a tokenizer's files."""
    repository, _, revision = hub_id.partition("@")
    return snapshot(repository, revision, [*TOKENIZER, modules.CONFIG])


def snapshot(repository: str, revision: str, patterns: Sequence[str]) -> Path:
    """The files of a repository that match, at one commit."""
    # Imported here, because the import takes a second and only a hub id needs it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():  # progress bars would fill a log
        disable_progress_bars()
    with translated_errors(repository, revision):
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(patterns)))


def listing(repository: str, commit: str) -> list[str]:
    """The files of a repository."""
    from huggingface_hub import list_repo_files

    with translated_errors(repository, commit):
        return sorted(list_repo_files(repository, revision=commit))


@contextmanager
def translated_errors(repository: str, revision: str) -> Iterator[None]:
    """Translate the errors of the hub and its library to ExportError, except OSErrors of this machine."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError as error:
        raise ExportError(
            f"{repository}: found no such directory, and no hub id either ({first_line(error)}), expected one of them"
        ) from error
    except errors.GatedRepoError as error:
        found = "HF_TOKEN is set, but has no access" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
        raise ExportError(
            f"{repository}: it is gated: accept its licence on the hub, and set HF_TOKEN to a token of yours ({found})"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ExportError(f"{repository}: the hub has no such repository, or HF_TOKEN gives no access to it") from error
    except errors.RevisionNotFoundError as error:
        raise ExportError(f"{repository}: the hub has no revision {revision!r} of it") from error
    except Exception as error:  # also those of the HTTP library, which depends on the version
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            error.filename = error.filename or constants.HF_HUB_CACHE  # the error of a full disk has no file name
            raise
        raise unavailable(repository, error) from error


def unavailable(repository: str, error: Exception) -> ExportError:
    """The error for a missing network or a failing hub; the library wraps the cause."""
    cause = error.__cause__ or error
    missing = f"{repository}: it is not in the local cache, or not whole"
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        hint = HINTS.get(status, "expected an answer: try again later")
        return ExportError(f"{missing}, and the hub answers {status} ({first_line(cause)}); {hint}")
    reason = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else first_line(cause)
    return ExportError(
        f"{missing}, and the hub cannot be reached ({reason}): "
        "found no such directory here either, expected a path that exists or a network"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_architecture(repository: str, directory: Path) -> None:
    """ExportError if the configuration names an unknown architecture."""
    from models.checkpoints import CheckpointError, architecture  # imports torch: only for a download

    config = directory / encoder_folder(directory) / "config.json"
    if not config.is_file():
        raise ExportError(f"{repository}: found no config.json, expected a model in the Hugging Face layout")
    try:
        found = read_json(config)
        architecture(as_encoder(found) if len(modules.read(directory)) > 1 else found)
    except CheckpointError as error:
        raise ExportError(f"{repository}: {error}") from error
