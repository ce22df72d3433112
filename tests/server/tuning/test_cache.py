"""Files with choices: written, read, and ignored if anything is wrong with them."""

import json
import logging
import os
from dataclasses import replace

import pytest

from protos.manifest_pb2 import Manifest
from server.artifact import Artifact
from server.tuning import cache as tuning_cache
from server.tuning.cache import ChoiceCache
from server.tuning.candidates import SHRINKING_BLOCKS, Candidate, Choice, Sizes

KEY = {"processor": "a CPU", "cpus": 8, "settings": {"precision": ""}}
CHOICE = Choice(
    candidate=Candidate(
        provider="cpu", graph="int8-dynamic", precision="int8-dynamic", threads=4, options=(SHRINKING_BLOCKS,)
    ),
    sizes=Sizes(max_batch_tokens=512),
    speedup=1.75,
    complete=False,
)


@pytest.fixture
def artifact(tmp_path):
    """Version 3 of a model, of which nothing but the directory is there."""
    (tmp_path / "artifacts" / "bert" / "3").mkdir(parents=True)
    return Artifact(tmp_path / "artifacts" / "bert" / "3", Manifest(name="bert", version=3))


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "affinity"


def beside(artifact):
    return artifact.directory.parent / ".tuning"


def written(artifact, key=KEY):
    """The file of a choice that was written."""
    ChoiceCache(None).write(artifact, key, CHOICE)
    (file,) = beside(artifact).iterdir()
    return file


def test_a_choice_is_read_as_it_was_written(artifact):
    assert written(artifact).name.startswith("3-")
    assert ChoiceCache(None).read(artifact, KEY) == CHOICE


def test_another_process_may_read_the_file(artifact):
    assert written(artifact).stat().st_mode & 0o444 == 0o444


@pytest.mark.parametrize("change", [{"cpus": 4}, {"processor": "another CPU"}, {"settings": {"precision": "fp32"}}])
def test_with_another_key_there_is_no_choice(artifact, change, caplog):
    written(artifact)
    assert ChoiceCache(None).read(artifact, KEY | change) is None
    assert not caplog.records


def changed(**fields):
    """A change of the contents of a file: fields of the choice, or of its candidate or sizes."""

    def change(text):
        found = json.loads(text)
        for name, value in fields.items():
            for part in (found["choice"], found["choice"]["candidate"], found["choice"]["sizes"]):
                if name in part:
                    part[name] = value
        return json.dumps(found)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\0" * 100,
        lambda text: "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        lambda text: "[]",
        lambda text: "{}",
        lambda text: "[" * 60_000,
        lambda text: text + " " * (1 << 17),
        lambda text: text.replace("a CPU", "another CPU"),
        changed(candidate=None),
        changed(candidate=[]),
        changed(sizes={}),
        changed(threads="4"),
        changed(threads=-1),
        changed(threads=True),
        changed(threads=1e999),
        changed(provider=None),
        changed(options=7),
        changed(options=[1]),
        changed(options=[["a", "b", "c"]]),
        changed(options=[["a", 1]]),
        changed(max_batch_tokens=1.5),
        changed(speedup="fast"),
        changed(speedup=float("nan")),
        changed(speedup=0.5),
        changed(speedup=None),
        changed(complete=None),
        changed(complete="no"),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_ignored_with_a_reason(artifact, change, caplog):
    file = written(artifact)
    file.write_text(change(file.read_text()))
    assert ChoiceCache(None).read(artifact, KEY) is None
    [line] = caplog.messages
    assert str(file) in line
    assert "ignored, and the model measured again" in line


def test_a_pipe_and_a_directory_are_ignored(artifact, caplog):
    file = written(artifact)
    file.unlink()
    os.mkfifo(file)
    assert ChoiceCache(None).read(artifact, KEY) is None
    file.unlink()
    file.mkdir()
    assert ChoiceCache(None).read(artifact, KEY) is None
    assert len(caplog.messages) == 2


def test_a_named_directory_takes_the_place_of_the_others(artifact, tmp_path):
    cache = ChoiceCache(tmp_path / "new" / "named")
    cache.write(artifact, KEY, CHOICE)
    assert cache.read(artifact, KEY) == CHOICE
    assert ChoiceCache(tmp_path / "new" / "named").read(artifact, KEY) == CHOICE
    assert [path.name for path in (tmp_path / "new" / "named" / "bert").iterdir()]
    assert not beside(artifact).exists()


def test_where_the_models_cannot_be_written_the_users_cache_is_taken(artifact, user_cache, caplog):
    caplog.set_level(logging.INFO)
    beside(artifact).write_text("a file, in place of the directory")
    ChoiceCache(None).write(artifact, KEY, CHOICE)
    assert len(list((user_cache / "bert").iterdir())) == 1
    assert ChoiceCache(None).read(artifact, KEY) == CHOICE
    [line] = caplog.messages
    assert str(user_cache / "bert") in line


def test_the_newest_choice_is_read(artifact, user_cache, monkeypatch):
    """The models became read-only, and then the choice was forced anew."""
    old = written(artifact)
    os.utime(old, (0, 0))
    newer = replace(CHOICE, speedup=3.0)
    with monkeypatch.context() as read_only:
        read_only.setattr(tuning_cache, "BESIDE", "3/no/such/place")
        (artifact.directory / "no").write_text("a file, in place of the directory")
        ChoiceCache(None).write(artifact, KEY, newer)
    assert len(list((user_cache / "bert").iterdir())) == 1
    assert ChoiceCache(None).read(artifact, KEY) == newer


def test_where_nothing_can_be_written_the_choice_is_kept_in_memory(artifact, user_cache, caplog):
    caplog.set_level(logging.INFO)
    beside(artifact).write_text("a file")
    user_cache.parent.write_text("a file")
    cache = ChoiceCache(None)
    cache.write(artifact, KEY, CHOICE)
    assert cache.read(artifact, KEY) == CHOICE
    assert ChoiceCache(None).read(artifact, KEY) is None
    [line] = caplog.messages
    assert "until the server ends" in line
    beside(artifact).unlink()  # now the models can be written
    newer = replace(CHOICE, speedup=3.0)
    cache.write(artifact, KEY, newer)
    assert cache.read(artifact, KEY) == newer
    assert ChoiceCache(None).read(artifact, KEY) == newer


def test_a_named_directory_that_cannot_be_written_is_a_warning(artifact, tmp_path, caplog):
    (tmp_path / "file").write_text("no directory")
    ChoiceCache(tmp_path / "file").write(artifact, KEY, CHOICE)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / "file") in record.getMessage()


def test_a_choice_replaces_the_one_before_and_leaves_no_other_file(artifact):
    for speedup in (1.5, 2.0):
        choice = Choice(candidate=CHOICE.candidate, speedup=speedup)
        ChoiceCache(None).write(artifact, KEY, choice)
        assert ChoiceCache(None).read(artifact, KEY) == choice
    assert len(list(beside(artifact).iterdir())) == 1
