"""From what the user names to a directory, and whether it has changed."""

import shutil
from pathlib import Path

import pytest

from export.errors import ExportError
from export.sources import lookup


def test_a_directory_is_called_by_its_own_name(checkpoints: dict[str, Path]) -> None:
    source = lookup.resolve(str(checkpoints["bert"]) + "/")
    assert (source.name, source.directory) == ("tiny-bert", checkpoints["bert"])


def test_every_bundled_model_is_found_by_its_name() -> None:
    for name in lookup.bundled():
        source = lookup.resolve(name)
        assert source.name == name
        assert (source.directory / "config.json").is_file()


def test_the_digest_depends_on_contents_and_not_on_paths_or_dates(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["bert"], copy)
    original = lookup.resolve(str(checkpoints["bert"])).digest()
    assert lookup.resolve(str(copy)).digest() == original
    (copy / "README.md").write_text("a card changes nothing")
    assert lookup.resolve(str(copy)).digest() == original
    with (copy / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert lookup.resolve(str(copy)).digest() != original


def test_a_file_of_another_kind_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ExportError, match=r"model.onnx: found a file, expected a directory .*, or nanoGPT's ckpt.pt"):
        lookup.resolve(str(tmp_path / "model.onnx"))


def test_an_empty_directory_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found no config.json"):
        lookup.resolve(str(tmp_path))


def test_nanogpts_file_has_the_name_of_its_directory_and_the_characters_beside_it(tmp_path: Path) -> None:
    (tmp_path / "out-shakespeare").mkdir()
    checkpoint, letters = (tmp_path / "out-shakespeare" / name for name in ("ckpt.pt", "meta.pkl"))
    checkpoint.touch()
    with pytest.raises(ExportError, match=r"found no tokenizer, expected meta.pkl beside it .* or --tokenizer"):
        lookup.resolve(str(checkpoint))
    letters.touch()
    source = lookup.resolve(str(checkpoint))
    assert (source.name, source.weights, source.tokenizer) == ("out-shakespeare", checkpoint, letters)
    before = source.digest()
    letters.write_bytes(b"others")
    assert source.digest() != before


def test_another_tokenizer_makes_another_source(checkpoints: dict[str, Path]) -> None:
    own = lookup.resolve(str(checkpoints["gpt"]))
    other = lookup.resolve(str(checkpoints["gpt"]), str(checkpoints["bert"] / "tokenizer.json"))
    assert own.tokenizer == checkpoints["gpt"]
    assert other.tokenizer == checkpoints["bert"] / "tokenizer.json"
    assert own.digest() != other.digest()
    with pytest.raises(ExportError, match="--tokenizer: found nothing named nowhere, expected a directory, a file"):
        lookup.resolve(str(checkpoints["gpt"]), "nowhere")


def test_the_digest_does_not_depend_on_unused_weights(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["bert"], copy)
    (copy / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    assert lookup.resolve(str(copy)).digest() == lookup.resolve(str(checkpoints["bert"])).digest()
