"""The command-line options that several benchmarks have: what to measure, how often, and where to keep the files."""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def parser(module: str, documentation: str) -> argparse.ArgumentParser:
    """The parser of `python -m tests.bench.MODULE`, described by the first paragraph of its documentation."""
    prog = f"python -m tests.bench.{module}".rstrip(".")
    return argparse.ArgumentParser(prog=prog, description=documentation.partition("\n\n")[0])


def add_sizes(command: argparse.ArgumentParser, sizes: Iterable[str]) -> None:
    command.add_argument("--sizes", choices=tuple(sizes), default="published", help="tiny: to rehearse it (published)")


def add_rounds(command: argparse.ArgumentParser, default: int) -> None:
    command.add_argument("--rounds", type=int, default=default, help=f"how often each side is measured ({default})")


def add_choice(command: argparse.ArgumentParser, flag: str, known: Iterable[str]) -> None:
    """A flag that selects some of the workloads or peers; all by default."""
    names = tuple(known)
    command.add_argument(
        flag, nargs="*", choices=names, default=names, metavar="NAME", help=f"{'; '.join(names)} (all)"
    )


def add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, help="keep the models here for the next run")


def add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", type=Path, metavar="FILE", help="a file for the rates of all rounds, as JSON")


@contextmanager
def folder_of(given: argparse.Namespace) -> Iterator[Path]:
    """The folder of `add_folder`, made if it is not there; without one, a folder that is removed in the end."""
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
        yield given.folder.resolve()
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
