"""An artifact is there whole or not at all, and nothing that was there is touched."""

import hashlib
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from export.artifact import store
from export.errors import ExportError
from protos.artifact import FORMAT_VERSION
from protos.manifest_pb2 import Manifest


def publish(root: Path, text: str = "graph", name: str = "model") -> Path:
    with store.staging(root) as staged:
        (staged / "cpu.onnx").write_text(text)
        return store.publish(staged, root, Manifest(name=name, format_version=FORMAT_VERSION))


def publish_whole(root: Path) -> Path:
    """Publish an artifact with all that its manifest needs."""
    with store.staging(root) as staged:
        (staged / "golden.safetensors").write_text("golden")
        return store.publish(staged, root, Manifest(name="model", task="embed", format_version=FORMAT_VERSION))


def test_versions_are_counted_up(tmp_path: Path) -> None:
    assert [publish(tmp_path).name for _ in range(3)] == ["1", "2", "3"]
    assert store.versions(tmp_path / "model") == [1, 2, 3]


def test_the_highest_version_counts_whatever_is_missing_below(tmp_path: Path) -> None:
    (tmp_path / "model/9").mkdir(parents=True)
    (tmp_path / "model/9/file").touch()
    assert publish(tmp_path).name == "10"


def test_every_file_is_listed_with_its_hash(tmp_path: Path) -> None:
    directory = publish(tmp_path, "weights")
    (file,) = json.loads((directory / "manifest.json").read_text())["files"]
    assert file == {"path": "cpu.onnx", "sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7.0}
    assert directory.stat().st_mode & 0o777 == 0o755
    digest = hashlib.sha256((directory / "manifest.json").read_bytes()).hexdigest()
    assert (directory / "manifest.json.sha256").read_text() == f"{digest}  manifest.json\n"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), store.staging(tmp_path) as staged:
        (staged / "no/such/place.onnx").write_text("half")
    assert list(tmp_path.iterdir()) == []


def begin_and_wait(root: Path, begun: "multiprocessing.Queue[str]") -> None:
    with store.staging(root) as staged:
        (staged / "cpu.onnx").write_text("half")
        begun.put(staged.name)
        signal.pause()


def test_the_next_export_removes_the_hidden_directory_of_a_killed_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begun = context.Queue()
    process = context.Process(target=begin_and_wait, args=(tmp_path, begun))
    process.start()
    name = begun.get(timeout=60)
    assert name.startswith(".")

    publish(tmp_path)  # beside a living export: its files stay
    assert (tmp_path / name / "cpu.onnx").exists()

    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / name).exists()
    publish(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def publish_many(root: Path, count: int) -> None:
    for _ in range(count):
        publish(root, text=str(os.getpid()))


def test_concurrent_exports_do_not_affect_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=publish_many, args=(tmp_path, 20)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert store.versions(tmp_path / "model") == list(range(1, 41))
    for version in range(1, 41):
        directory = tmp_path / "model" / str(version)
        found = json.loads((directory / "manifest.json").read_text())
        assert found["version"] == version
        assert found["files"][0]["sha256"] == hashlib.sha256((directory / "cpu.onnx").read_bytes()).hexdigest()


def test_the_newest_is_the_highest_number_not_the_last_by_name(tmp_path: Path) -> None:
    for _ in range(11):
        directory = publish_whole(tmp_path)
    found = store.newest(tmp_path, "model")
    assert found is not None
    assert (found[0].name, found[1].version) == ("11", 11)
    assert store.newest(tmp_path, "other") is None
    (directory / "golden.safetensors").write_text("altered")
    with pytest.raises(ExportError, match=r"model/11/golden.safetensors: found .* altered"):
        store.newest(tmp_path, "model")


@pytest.mark.parametrize("name", ["bert", "bert-base.v2", "gpt_2"])
def test_a_valid_name_is_accepted(name: str) -> None:
    store.check_name(name)


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "naïve", "a b", "bert.raw"])
def test_an_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match="--name"):
        store.check_name(name)
