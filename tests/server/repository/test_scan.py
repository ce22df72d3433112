"""What is found in the directory of artifacts, and what is to be done about it."""

import os
import shutil

import pytest

from protos.artifact import MANIFEST
from server.config.version_policy import Versions
from server.repository import scan
from server.repository.poller import Plan, plan
from server.repository.scan import Found, Scanner

LATEST, BOTH, ALL = Versions(), Versions(newest=2), Versions(newest=0)


@pytest.fixture
def root(artifacts, tmp_path):
    """A directory with one model that the test may change."""
    shutil.copytree(artifacts / "tiny-vit", tmp_path / "tiny-vit")
    return tmp_path


# ---- scans


def test_a_complete_version_has_no_problem(root):
    found = Scanner(root).scan()
    assert [*found] == ["tiny-vit"]
    assert [*found["tiny-vit"]] == [1]
    assert found["tiny-vit"][1].problem == ""


def test_a_version_that_is_being_copied_has_a_problem_until_its_last_byte(root):
    scanner, source = Scanner(root), root / "tiny-vit/1"
    scanner.scan()
    shutil.move(source, root / "whole")
    source.mkdir()
    files = sorted((root / "whole").iterdir(), key=lambda path: path.name != MANIFEST)  # the manifest first
    problems = [scanner.scan()["tiny-vit"][1].problem]
    for file in files:
        contents = file.read_bytes()
        for part in (contents[: len(contents) // 2], contents):
            (source / file.name).write_bytes(part)
            problems.append(scanner.scan()["tiny-vit"][1].problem)
    assert all(problems[:-1])
    assert not problems[-1]


def test_an_unchanged_version_is_examined_once(root, monkeypatch):
    examined = []
    monkeypatch.setattr(scan, "why_incomplete", lambda directory: examined.append(directory) or "")
    scanner = Scanner(root)
    assert scanner.scan() == scanner.scan()
    os.utime(root / "tiny-vit/1/cpu.onnx", ns=(0, 1))
    scanner.scan()
    assert examined == [root / "tiny-vit/1"] * 2


def test_directories_that_are_not_versions_are_not_found(root):
    for name in (
        ".tiny-bert/1",
        "lost+found",
        "tiny-vit/01",
        "tiny-vit/.2",
        "tiny-vit/two",
        "tiny-vit/²",
        "tiny-vit/4",
    ):
        (root / name).mkdir(parents=True)
    (root / "tiny-vit/3").write_text("a file")
    assert [*Scanner(root).scan()["tiny-vit"]] == [1]
    assert Scanner(root, ["another"]).scan() == {}


def test_versions_that_cannot_be_read_for_a_moment_are_not_gone(root, monkeypatch):
    scanner, list_directories = Scanner(root), scan._directories
    before = scanner.scan()

    def unreadable(parent):
        if parent == root / "tiny-vit":
            raise PermissionError
        return list_directories(parent)

    monkeypatch.setattr(scan, "_directories", unreadable)
    assert scanner.scan() == scanner.scan() == before


def test_a_version_that_is_removed_during_the_scan_takes_no_other_with_it(root, monkeypatch):
    shutil.copytree(root / "tiny-vit/1", root / "tiny-vit/2")
    scanner, examined = Scanner(root), []
    scanner.scan()

    def remove_the_other_one(directory):
        if not examined:
            shutil.rmtree(root / "tiny-vit" / {"1": "2", "2": "1"}[directory.name])
        examined.append(directory)
        return "" if directory.exists() else "it is gone"

    monkeypatch.setattr(scan, "why_incomplete", remove_the_other_one)
    for version in ("1", "2"):
        os.utime(root / "tiny-vit" / version / "cpu.onnx", ns=(0, 1))
    found = scanner.scan()["tiny-vit"]
    left = int(examined[0].name)
    assert found[left].problem == ""
    assert [*scanner.scan()["tiny-vit"]] == [left]


def test_a_missing_directory_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Scanner(tmp_path / "missing").scan()


# ---- plans


def found(*numbers, changed=(), problems=()):
    """Versions in the directory, each with a fingerprint."""
    return {
        number: Found(
            f"directory {number}",
            f"{number}, changed" if number in changed else f"{number}",
            "cpu.onnx: No such file" if number in problems else "",
        )
        for number in numbers
    }


@pytest.mark.parametrize(
    ("there", "served", "failed", "policy", "expected"),
    [
        # nothing to do
        (found(1), [1], [], LATEST, Plan((), (1,))),
        (found(1, 2), [2], [], LATEST, Plan((), (2,))),
        (found(), [], [], LATEST, Plan((), ())),
        # new versions
        (found(1), [], [], LATEST, Plan((1,), ())),
        (found(1, 2), [1], [], LATEST, Plan((2,), ())),
        (found(1, 2, 3), [1, 2], [], BOTH, Plan((3,), (2,))),
        (found(1, 2, 3), [1], [], ALL, Plan((2, 3), (1,))),
        (found(1, 2, 3), [1], [], Versions(named=(1, 3)), Plan((3,), (1,))),
        # not complete yet
        (found(1, problems=[1]), [], [], LATEST, Plan((), ())),
        (found(1, 2, problems=[2]), [1], [], LATEST, Plan((), (1,))),
        (found(1, 2, 3, problems=[3]), [1], [], LATEST, Plan((2,), ())),
        # failed, and failed before its files changed
        (found(1, 2), [1], [2], LATEST, Plan((), (1,))),
        (found(1, 2, changed=[2]), [1], [2], LATEST, Plan((2,), ())),
        (found(1, 2, 3), [1], [2], ALL, Plan((3,), (1,))),
        # gone
        (found(1), [2], [], LATEST, Plan((1,), ())),
        (found(), [1], [], LATEST, Plan((), ())),
        (found(1), [1, 3], [], Versions(named=(1, 3)), Plan((), (1,))),
        # changed while it is served
        (found(1, changed=[1]), [1], [], LATEST, Plan((1,), ())),
        (found(1, changed=[1], problems=[1]), [1], [], LATEST, Plan((), (1,))),
        (found(1, 2, changed=[2], problems=[2]), [2], [], LATEST, Plan((), (2,))),
    ],
)
def test_the_policy_chooses_among_complete_versions_that_have_not_failed(there, served, failed, policy, expected):
    fingerprints = {number: f"{number}" for number in (1, 2, 3)}
    failed = {number: fingerprints[number] for number in failed}
    assert plan(there, served, loaded=fingerprints, failed=failed, policy=policy) == expected


def test_a_version_that_failed_while_it_was_served_before_its_change_stays():
    there = found(1, changed=[1])
    failed = {1: there[1].fingerprint}
    assert plan(there, [1], loaded={}, failed=failed, policy=LATEST) == Plan((), (1,))
