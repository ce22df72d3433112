"""From what the user names to a directory, and whether it has changed."""

import shutil
from pathlib import Path

import pytest

from export import sources
from export.errors import ExportError


def test_a_directory_is_called_by_its_own_name(checkpoints: dict[str, Path]) -> None:
    source = sources.resolve(str(checkpoints["bert"]) + "/")
    assert (source.name, source.directory) == ("tiny-bert", checkpoints["bert"])


def test_every_bundled_model_is_found_by_its_name() -> None:
    for name in sources.bundled():
        source = sources.resolve(name)
        assert source.name == name
        assert (source.directory / "config.json").is_file()


def test_the_digest_follows_contents_and_not_places_or_dates(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints["bert"], copy)
    original = sources.resolve(str(checkpoints["bert"])).digest()
    assert sources.resolve(str(copy)).digest() == original
    (copy / "README.md").write_text("a card changes nothing")
    assert sources.resolve(str(copy)).digest() == original
    with (copy / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert sources.resolve(str(copy)).digest() != original


def test_a_file_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").touch()
    with pytest.raises(ExportError, match=r"ckpt.pt: found a file, expected a directory"):
        sources.resolve(str(tmp_path / "ckpt.pt"))


def test_an_empty_directory_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found no config.json"):
        sources.resolve(str(tmp_path))


def test_a_hub_id_without_a_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ExportError, match=r"someone/some-model: .*not in the local cache"):
        sources.resolve("someone/some-model")


def test_of_a_hub_repository_only_what_matters_is_fetched(
    monkeypatch: pytest.MonkeyPatch, checkpoints: dict[str, Path]
) -> None:
    import huggingface_hub

    asked = {}

    def snapshot_download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(checkpoints["bert"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    source = sources.resolve("google-bert/bert-base-uncased@abc")
    assert (source.name, source.directory) == ("bert-base-uncased", checkpoints["bert"])
    assert (asked["repository"], asked["revision"]) == ("google-bert/bert-base-uncased", "abc")
    assert "model.safetensors" in asked["allow_patterns"]
    assert not any(pattern.startswith("*.") for pattern in asked["allow_patterns"])
