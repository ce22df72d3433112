"""What the tests of the export share: the command, and tiny checkpoints by the kind of model."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from export.__main__ import main
from tests.checkpoints import randomise
from tests.sharing import make_once, shared_directory

PREFIX = "tiny-"


@dataclass(frozen=True)
class Outcome:
    """What an export came to."""

    status: int
    said: str
    complained: str
    artifacts: Path

    @property
    def visible(self) -> list[str]:
        """What a server would find."""
        return sorted(path.name for path in self.artifacts.glob("*/*"))


@pytest.fixture(scope="session", autouse=True)
def one_thread(traced_once: None) -> None:
    """Models this small are fastest on one; several wait for each other where cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoints(tiny_checkpoints: dict[str, Path]) -> dict[str, Path]:
    """By kind: bert, classifier, embedder, gpt, vit, mixer. Not to be written in: copy what a test changes."""
    return {name.removeprefix(PREFIX): directory for name, directory in tiny_checkpoints.items()}


@pytest.fixture(scope="session")
def artifacts(exported: Callable[[str], Path]) -> Callable[[str], Path]:
    """By kind: the first version, exported when a test first asks for it."""
    return lambda kind: exported(PREFIX + kind)


@pytest.fixture
def export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The command, writing to a directory of this test's own."""

    def run(*arguments: str | Path) -> Outcome:
        status = main([*map(str, arguments), "--artifacts", str(tmp_path / "artifacts")])
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err, tmp_path / "artifacts")

    return run


@pytest.fixture(scope="session")
def exported_together(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Sequence[str], str], Path]:
    """Export tiny models for several targets with one command. Returns their directory, one for each name."""

    def export_together(name: str, kinds: Sequence[str], targets: str) -> Path:
        root = shared_directory(tmp_path_factory, name)
        command = [*(str(checkpoints[kind]) for kind in kinds), "--artifacts", str(root), "--target", targets]

        def make() -> None:
            assert main(command) == 0

        make_once(root, "all", make)
        return root

    return export_together


@pytest.fixture(scope="session")
def encoder_module(checkpoints: dict[str, Path]) -> nn.Module:
    """The embedder's encoder, as sentence-transformers has it: for texts of 32 tokens."""
    from sentence_transformers.sentence_transformer.modules import Transformer  # only for those who need it: seconds

    return Transformer(str(checkpoints["embedder"]), max_seq_length=32)


@pytest.fixture
def saved(encoder_module: nn.Module, tmp_path: Path) -> Callable[..., Path]:
    """Save the encoder with these modules after it, all their weights random."""
    from sentence_transformers import SentenceTransformer

    def save(*modules: nn.Module) -> Path:
        for number, module in enumerate(modules):
            randomise(module, number)
        SentenceTransformer(modules=[encoder_module, *modules], device="cpu").save(str(tmp_path / "model"))
        return tmp_path / "model"

    return save


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy an artifact, DIR/<name>/<version>, to change it."""
    return lambda directory: shutil.copytree(directory, tmp_path / "copy" / directory.parent.name / directory.name)
