"""Keeps choices in files, so that a model is measured once for each kind of machine and each set of versions.

A file is beside the versions of the model, in `.tuning/`, or in a directory of the user's if the former cannot be
written. It is replaced as a whole, so that several servers may write to one directory. A file that is damaged or has
another key is ignored.
"""

import dataclasses
import hashlib
import json
import logging
import math
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.artifact import Artifact
from server.tuning.candidates import Candidate, Choice, Option, Sizes

FORMAT = 2  # changes with the form of the file, and when choices are made in another way
BESIDE = ".tuning"  # hidden from scans for versions
MAX_BYTES = 1 << 16
DIGEST_DIGITS = 16  # of the key, in the name of a file
READABLE = 0o644

log = logging.getLogger(__name__)

Key = dict[str, Any]  # everything that a choice depends on, as JSON


class ChoiceCache:
    """The choices of this process and those in files. `directory` replaces the directories where files are by default.

    Raises nothing: without a place to write, choices are kept until the process ends.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._memory: dict[str, Choice] = {}  # name of the file that could not be written → choice

    def read(self, artifact: Artifact, key: Key) -> Choice | None:
        """The newest choice with this key, if there is one that can be read."""
        name = _name(artifact, key)
        if name in self._memory:
            return self._memory[name]
        files = [place / name for place in self._places(artifact)]
        readable = (_read(file, key) for file in sorted(files, key=_written_at, reverse=True))
        return next((choice for choice in readable if choice is not None), None)

    def write(self, artifact: Artifact, key: Key, choice: Choice) -> None:
        """Keep a choice, in the first place that can be written."""
        text = json.dumps({"key": key, "choice": dataclasses.asdict(choice)}, indent=2) + "\n"
        name, problems = _name(artifact, key), []
        self._memory.pop(name, None)
        for place in self._places(artifact):
            try:
                _replace(place / name, text)
            except OSError as error:
                problems.append(f"{place}: {error.strerror or error}")
            else:
                if problems:
                    log.info("%s: the choice is kept in %s (%s)", artifact.name, place, "; ".join(problems))
                return
        self._memory[name] = choice
        level = logging.INFO if self._directory is None else logging.WARNING  # that of the settings has to be writable
        log.log(level, "%s: the choice is kept until the server ends (%s)", artifact.name, "; ".join(problems))

    def _places(self, artifact: Artifact) -> list[Path]:
        """The directories for the choices of a model, best first."""
        if self._directory is not None:
            return [self._directory / artifact.name]
        beside = artifact.directory.parent / BESIDE
        user = _user_cache()
        return [beside, user / artifact.name] if user else [beside]


def _user_cache() -> Path | None:
    """The user's directory for caches (XDG Base Directory Specification)."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if named.is_absolute():
        return named / "affinity"
    try:
        return Path.home() / ".cache" / "affinity"
    except RuntimeError:  # there is no home
        return None


def _name(artifact: Artifact, key: Key) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, key], sort_keys=True).encode()).hexdigest()
    return f"{artifact.version}-{digest[:DIGEST_DIGITS]}.json"


def _written_at(file: Path) -> float:
    """The time of the last change of a file; that of no file is before all others."""
    try:
        return file.stat().st_mtime
    except OSError:
        return -math.inf


def _read(file: Path, key: Key) -> Choice | None:
    """The choice in a file; None, with a line in the log, if there is a file that cannot be used."""
    try:
        return _parse(_contents(file), key)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        log.warning("%s: ignored, and the model measured again: %s", file, error)
        return None


def _contents(file: Path) -> bytes:
    """The contents of a small file. Raises OSError, and ValueError if it is something else: a pipe would block."""
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise ValueError(f"found {status.st_size} bytes or no regular file, expected a file of at most {MAX_BYTES}")
    return file.read_bytes()


def _parse(contents: bytes, key: Key) -> Choice:
    """The choice in a file. Raises ValueError if the file is not as it was written, or has another key."""
    try:
        found = json.loads(contents)
    except RecursionError as error:
        raise ValueError("found nested too deeply") from error
    if not isinstance(found, dict) or found.get("key") != key:
        raise ValueError("found a choice for another model, machine or version")
    fields = _object(found, "choice")
    candidate, sizes = _object(fields, "candidate"), _object(fields, "sizes")
    return Choice(
        candidate=Candidate(
            provider=_text(candidate, "provider"),
            graph=_text(candidate, "graph"),
            precision=_text(candidate, "precision"),
            threads=_count(candidate, "threads"),
            options=_options(candidate.get("options")),
        ),
        sizes=Sizes(**{field.name: _count(sizes, field.name) for field in dataclasses.fields(Sizes)}),
        speedup=_ratio(fields.get("speedup")),
        complete=_truth(fields, "complete"),
    )


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(found := fields.get(name), dict):
        raise ValueError(f"{name}: found {found!r:.80}, expected an object")
    return found


def _text(fields: dict[str, Any], name: str) -> str:
    if not isinstance(found := fields.get(name), str):
        raise ValueError(f"{name}: found {found!r:.80}, expected a text")
    return found


def _count(fields: dict[str, Any], name: str) -> int:
    if not isinstance(found := fields.get(name), int) or isinstance(found, bool) or found < 0:
        raise ValueError(f"{name}: found {found!r:.80}, expected a number, 0 or more")
    return found


def _truth(fields: dict[str, Any], name: str) -> bool:
    if not isinstance(found := fields.get(name), bool):
        raise ValueError(f"{name}: found {found!r:.80}, expected true or false")
    return found


def _options(found: object) -> tuple[Option, ...]:
    pairs: list[Any] = found if isinstance(found, list) else [found]
    if not all(isinstance(pair, list) and list(map(type, pair)) == [str, str] for pair in pairs):
        raise ValueError(f"options: found {found!r:.80}, expected pairs of texts")
    return tuple((name, value) for name, value in pairs)


def _ratio(found: object) -> float:
    if not isinstance(found, int | float) or isinstance(found, bool) or not 1 <= found < math.inf:
        raise ValueError(f"speedup: found {found!r:.80}, expected 1 or more")
    return float(found)


def _replace(file: Path, text: str) -> None:
    """Write a file as a whole, or not at all. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".json", dir=file.parent)
    try:
        with os.fdopen(descriptor, "w") as opened:
            opened.write(text)
        os.chmod(temporary, READABLE)
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
