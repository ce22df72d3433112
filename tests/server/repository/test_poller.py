"""A repository that follows its directory, one poll at a time."""

import logging
import os
import shutil
from contextlib import asynccontextmanager

import pytest

from protos.artifact import MANIFEST
from server.admission.queue import RequestContext
from server.config.settings import Settings
from server.config.version_policy import Versions
from server.errors import BadArtifact, ModelNotFound
from server.repository.poller import Poller
from server.repository.repository import Repository
from server.repository.states import Entry
from tests.artifacts import change_manifest, next_version

MODELS = ("tiny-classifier", "tiny-embedder")
OK = Entry("tiny-embedder", "1", "READY")


@pytest.fixture
def root(artifacts, tmp_path):
    """A directory of artifacts that the test may change."""
    for name in MODELS:
        shutil.copytree(artifacts / name, tmp_path / name)
    return tmp_path


@asynccontextmanager
async def polled(root, **settings):
    """A repository, loaded from the directory, and its poller."""
    settings = Settings(artifacts=root, provider="cpu", threads=1, tune="off", poll_artifacts=1, **settings)
    repository = Repository(settings)
    poller = Poller(repository, settings)
    try:
        await poller.start()
        await repository.load_all()
        yield repository, poller
    finally:
        await repository.drain()


def served(repository):
    return [(model.name, model.version) for model in repository.models()]


def entry(repository, name, version):
    return next(each for each in repository.index() if (each.name, each.version) == (name, str(version)))


def copy_in_steps(source, target):
    """Copy an artifact, and stop after each step: after each directory, half of a file, and file."""
    target.mkdir(parents=True)
    yield
    for file in sorted(source.iterdir(), key=lambda path: path.name != MANIFEST):  # the manifest first
        contents = file.read_bytes()
        for part in (contents[: len(contents) // 2], contents):
            (target / file.name).write_bytes(part)
            yield


async def test_nothing_happens_while_nothing_changes(root):
    async with polled(root) as (repository, poller):
        before = repository.models()
        await poller.poll()
        assert repository.models() == before


async def test_a_new_version_replaces_the_old_one(root):
    async with polled(root) as (repository, poller):
        next_version(root, "tiny-embedder")
        await poller.poll()
        assert served(repository) == [("tiny-classifier", "1"), ("tiny-embedder", "2")]
        vectors = await repository.get("tiny-embedder").task(["a text"], context=RequestContext())
        assert len(vectors.vectors) == 1


async def test_a_new_model_is_loaded_when_its_last_file_is_there(root):
    source = shutil.move(root / "tiny-embedder", root / ".elsewhere")
    async with polled(root) as (repository, poller):
        for _ in copy_in_steps(source / "1", root / "tiny-embedder/1"):
            assert served(repository) == [("tiny-classifier", "1")]
            await poller.poll()
        assert served(repository) == [("tiny-classifier", "1"), ("tiny-embedder", "1")]
        assert repository.failures() == []


async def test_a_version_that_is_copied_slowly_leaves_the_old_one_in_place(root):
    whole = next_version(root, "tiny-embedder").rename(root / ".whole")
    async with polled(root) as (repository, poller):
        for _ in copy_in_steps(whole, root / "tiny-embedder/2"):
            assert repository.get("tiny-embedder").version == "1"
            await poller.poll()
            if repository.get("tiny-embedder").version == "1":
                reasons = [each.reason for each in repository.index() if each.version == "2"]
                assert all(reason.startswith("not complete: ") for reason in reasons)  # none before the manifest
        assert repository.get("tiny-embedder").version == "2"


async def test_models_that_the_settings_do_not_name_are_not_loaded(root):
    async with polled(root, models=("tiny-embedder",)) as (repository, poller):
        next_version(root, "tiny-classifier")
        await poller.poll()
        assert served(repository) == [("tiny-embedder", "1")]


# ---- versions that fail


async def test_a_version_that_fails_leaves_the_old_one_serving_and_says_why(root, caplog):
    async with polled(root) as (repository, poller):
        directory = next_version(root, "tiny-embedder", task="translate")
        await poller.poll()
        assert repository.get("tiny-embedder").version == "1"
        failed = entry(repository, "tiny-embedder", 2)
        assert (failed.state, failed.failure) == ("UNAVAILABLE", "artifact")
        assert "task: found 'translate'" in failed.reason
        assert entry(repository, "tiny-embedder", 1) == OK
        [line] = [record.message for record in caplog.records if record.levelno == logging.ERROR]
        assert line.startswith("tiny-embedder version 2 is not loaded: ")
        assert "task: found 'translate'" in line
        assert line.endswith("; still serving 1")
        caplog.clear()
        await poller.poll()  # not again
        assert caplog.records == []
        change_manifest(directory, task="embed")
        await poller.poll()
        assert repository.get("tiny-embedder").version == "2"
        assert repository.failures() == []


async def test_a_failed_version_does_not_keep_others_from_being_served(root):
    async with polled(root, overrides={"*": {"versions": Versions(newest=0)}}) as (repository, poller):
        next_version(root, "tiny-embedder", task="translate")
        next_version(root, "tiny-embedder")
        next_version(root, "tiny-classifier")
        await poller.poll()
        assert served(repository) == [
            ("tiny-classifier", "1"),
            ("tiny-classifier", "2"),
            ("tiny-embedder", "1"),
            ("tiny-embedder", "3"),
        ]
        assert [(each.version, each.failure) for each in repository.failures()] == [("2", "artifact")]


async def test_an_altered_file_of_the_same_size_is_found_by_its_digest(root):
    async with polled(root) as (repository, poller):
        file = next_version(root, "tiny-embedder") / "cpu.onnx"
        contents = file.read_bytes()
        file.write_bytes(contents[:-1] + bytes((contents[-1] ^ 1,)))
        await poller.poll()
        assert repository.get("tiny-embedder").version == "1"
        assert "the file was altered" in entry(repository, "tiny-embedder", 2).reason
        file.write_bytes(contents)
        os.utime(file, ns=(0, 1))  # another time of modification, however fast the test is
        await poller.poll()
        assert repository.get("tiny-embedder").version == "2"


async def test_a_version_that_stays_incomplete_is_a_warning_once(root, caplog):
    async with polled(root) as (repository, poller):
        (next_version(root, "tiny-embedder") / "cpu.onnx").unlink()
        await poller.poll()  # it may be being copied
        assert caplog.records == []
        for _ in range(3):
            await poller.poll()
        [warning] = caplog.records
        assert "tiny-embedder version 2 is not loaded, because it is not complete: " in warning.message
        assert "cpu.onnx: No such file" in warning.message
        assert repository.get("tiny-embedder").version == "1"


async def test_a_failed_version_is_forgotten_when_it_is_removed(root):
    async with polled(root) as (repository, poller):
        directory = next_version(root, "tiny-embedder", task="translate")
        await poller.poll()
        shutil.rmtree(directory)
        await poller.poll()
        assert repository.failures() == []
        assert [each.version for each in repository.index() if each.name == "tiny-embedder"] == ["1"]


# ---- versions that change or vanish


async def test_a_version_whose_files_are_replaced_serves_as_it_was_until_they_are_complete(root):
    async with polled(root) as (repository, poller):
        old, directory = repository.get("tiny-embedder"), root / "tiny-embedder/1"
        contents = (directory / "cpu.onnx").read_bytes()
        (directory / "cpu.onnx").write_bytes(b"half")
        await poller.poll()
        assert repository.get("tiny-embedder") is old
        kept = entry(repository, "tiny-embedder", 1)
        assert (kept.state, kept.failure) == ("READY", "artifact")
        assert "found 4 bytes" in kept.reason
        (directory / "cpu.onnx").write_bytes(contents)
        await poller.poll()
        assert repository.get("tiny-embedder") is old  # it is what it was
        assert entry(repository, "tiny-embedder", 1) == OK
        change_manifest(directory, source={"digest": "another"})
        await poller.poll()
        assert repository.get("tiny-embedder").artifact.manifest.source.digest == "another"


async def test_a_version_whose_replacement_fails_serves_as_it_was(root):
    async with polled(root) as (repository, poller):
        old = repository.get("tiny-embedder")
        change_manifest(root / "tiny-embedder/1", task="translate")
        await poller.poll()
        await poller.poll()
        assert repository.get("tiny-embedder") is old
        assert [(each.state, each.failure) for each in repository.failures()] == [("READY", "artifact")]


async def test_the_version_before_is_served_again_when_the_newest_is_removed(root):
    newest = next_version(root, "tiny-embedder")
    async with polled(root) as (repository, poller):
        assert repository.get("tiny-embedder").version == "2"
        shutil.rmtree(newest)
        await poller.poll()
        assert repository.get("tiny-embedder").version == "1"


async def test_a_model_that_is_removed_is_unloaded(root):
    async with polled(root) as (repository, poller):
        shutil.rmtree(root / "tiny-embedder")
        await poller.poll()
        assert served(repository) == [("tiny-classifier", "1")]
        with pytest.raises(ModelNotFound, match="found 'tiny-embedder'"):
            repository.get("tiny-embedder")
        while repository.names() != ["tiny-classifier"]:  # until its last request is answered
            await poller.poll()
        assert repository.index() == [Entry("tiny-classifier", "1", "READY")]


async def test_a_directory_that_cannot_be_read_changes_nothing(root, caplog):
    async with polled(root) as (repository, poller):
        before = served(repository)
        aside = root.rename(root.with_name("aside"))
        for _ in range(2):
            await poller.poll()
        assert served(repository) == before
        assert [record.message for record in caplog.records] == [
            f"cannot read {root}: No such file or directory; the models stay as they are"
        ]
        aside.rename(root)
        next_version(root, "tiny-embedder")
        await poller.poll()
        assert repository.get("tiny-embedder").version == "2"


async def test_a_model_that_was_unloaded_by_a_call_stays_unloaded_until_its_directory_changes(root):
    async with polled(root) as (repository, poller):
        await repository.unload("tiny-embedder")
        await poller.poll()
        assert entry(repository, "tiny-embedder", 1).reason == "unloaded"
        assert served(repository) == [("tiny-classifier", "1")]
        next_version(root, "tiny-embedder")
        await poller.poll()
        assert repository.get("tiny-embedder").version == "2"


# ---- at the start


async def test_a_version_that_is_not_complete_at_the_start_is_loaded_later(root):
    directory = next_version(root, "tiny-embedder")
    aside = (directory / "cpu.onnx").rename(root / ".aside")
    async with polled(root) as (repository, poller):
        assert repository.get("tiny-embedder").version == "1"
        assert "cpu.onnx: No such file" in entry(repository, "tiny-embedder", 2).reason
        aside.rename(directory / "cpu.onnx")
        await poller.poll()
        assert repository.get("tiny-embedder").version == "2"


async def test_a_model_without_a_complete_version_at_the_start_is_loaded_later(root):
    aside = (root / "tiny-embedder/1/cpu.onnx").rename(root / ".aside")
    async with polled(root) as (repository, poller):
        assert served(repository) == [("tiny-classifier", "1")]
        aside.rename(root / "tiny-embedder/1/cpu.onnx")
        await poller.poll()
        assert served(repository) == [("tiny-classifier", "1"), ("tiny-embedder", "1")]


async def test_a_model_that_the_settings_name_has_to_be_complete_at_the_start(root):
    os.remove(root / "tiny-embedder/1/cpu.onnx")
    with pytest.raises(BadArtifact, match="model tiny-embedder: found no complete version: .*cpu.onnx: No such file"):
        async with polled(root, models=MODELS):
            pass


async def test_one_complete_model_is_needed_at_the_start(root):
    for name in MODELS:
        os.remove(root / name / "1/cpu.onnx")
    with pytest.raises(BadArtifact, match="found no model with a complete version"):
        async with polled(root):
            pass
