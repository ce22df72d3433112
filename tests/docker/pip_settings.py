"""This machine's pip settings for image builds, which need the same mirrors and certificates."""

import ast
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PipSettings:
    """A pip.conf, and the folders of this machine that it refers to."""

    file: Path
    folders: list[Path]


@contextlib.contextmanager
def pip_settings(*, of_this_machine: bool) -> Iterator[PipSettings]:
    """All settings if the build can mount folders of this machine, otherwise those that need no folders."""
    settings = {key: value for key, value in read().items() if of_this_machine or not folders(value)}
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:  # readable by its owner only
        file.write("\n".join(("[global]", *(f"{key} = {value}" for key, value in settings.items()), "")))
        file.flush()
        yield PipSettings(Path(file.name), sorted({folder for value in settings.values() for folder in folders(value)}))


def read() -> dict[str, str]:
    """The settings of pip from its files and the environment."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    lines = [line.split("=", 1) for line in listed.stdout.splitlines()]  # global.index-url='…', :env:.index-url='…'
    ordered = sorted(lines, key=lambda line: line[0].startswith(":env:"))  # the environment takes precedence
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, value in ordered}


def folders(value: str) -> set[Path]:
    """The folders of the files in a setting."""
    paths = [Path(word.removeprefix("file://")) for word in value.split()]
    return {path.parent for path in paths if path.is_absolute() and path.exists()}
