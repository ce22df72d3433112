"""Files that change while the server runs."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest

from server.host.watched_files import MAX_BYTES, BadFile, WatchedFiles

BAD = b"bad: s3cret"


def parse(contents):
    if BAD in contents.values():
        raise BadFile("--second second: line 1: expected something else")
    return dict(contents)


def open_files():
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the directory itself is closed
            found.append(os.readlink(descriptor))
    return found


def replace(file, damage):
    """Replace a file by something that cannot be used."""
    file.unlink()
    match damage:
        case "content":
            file.write_bytes(BAD)
        case "directory":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
        case "large":
            file.write_bytes(bytes(MAX_BYTES + 1))


@pytest.fixture
def files(tmp_path, caplog):
    caplog.set_level(logging.INFO, "server")
    paths = {"--first": tmp_path / "first", "--second": tmp_path / "second"}
    for path in paths.values():
        path.write_bytes(b"1")
    return paths


def test_a_change_is_used_once_it_was_found_twice(files, caplog):
    watched = WatchedFiles(files, parse)
    assert not watched.refresh()
    files["--first"].write_bytes(b"2")
    assert not watched.refresh()
    files["--second"].write_bytes(b"2")
    assert not watched.refresh()
    assert watched.value == {"--first": b"1", "--second": b"1"}
    assert watched.refresh()
    assert watched.value == {"--first": b"2", "--second": b"2"}
    assert not watched.refresh()
    assert caplog.text.count("read again because of a change: --first") == 1


def test_links_are_followed_anew_each_time(files, tmp_path):
    """Kubernetes replaces the files of a secret by changing one link."""
    for number in "12":
        (tmp_path / number).write_bytes(number.encode())
    link = tmp_path / "link"
    link.symlink_to("1")
    watched = WatchedFiles({"--linked": link}, parse)
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").rename(link)
    assert [watched.refresh(), watched.refresh()] == [False, True]
    assert watched.value == {"--linked": b"2"}


@pytest.mark.parametrize("damage", ["content", "deleted", "directory", "pipe", "large"])
def test_a_replacement_that_cannot_be_used_changes_nothing_and_is_logged_once(files, caplog, damage):
    watched = WatchedFiles(files, parse)
    replace(files["--second"], damage)
    assert [watched.refresh() for _ in range(4)] == [False] * 4
    assert watched.value == {"--first": b"1", "--second": b"1"}
    [line] = caplog.messages
    assert line.startswith("--second ")
    assert line.endswith("the contents of before stay in use")
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("damage", ["directory", "pipe", "large"])
def test_reading_again_and_again_leaves_no_file_open(files, damage):
    watched = WatchedFiles(files, parse)
    replace(files["--second"], damage)
    for _ in range(3):
        watched.refresh()
    assert str(files["--second"]) not in open_files()


def test_after_a_bad_replacement_a_good_one_is_used(files):
    watched = WatchedFiles(files, parse)
    for contents in (BAD, b"3"):
        files["--second"].write_bytes(contents)
        changed = [watched.refresh(), watched.refresh()]
    assert changed == [False, True]
    assert watched.value["--second"] == b"3"


def test_the_contents_of_before_are_no_change(files, caplog):
    watched = WatchedFiles(files, parse)
    for contents in (b"2", b"1"):
        files["--first"].write_bytes(contents)
        assert not watched.refresh()
    assert not watched.refresh()
    assert caplog.messages == []


@pytest.mark.parametrize("kind", ["missing", "directory", "unreadable content"])
def test_files_have_to_be_good_at_the_start(tmp_path, kind):
    file = tmp_path / "file"
    if kind == "directory":
        file.mkdir()
    elif kind == "unreadable content":
        file.write_bytes(BAD)
    with pytest.raises(BadFile, match=r"^--\w+ \S+: [^\n]+$"):
        WatchedFiles({"--first": file}, parse)
