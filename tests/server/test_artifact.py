"""An artifact is read whole and unaltered, or refused with the reason."""

import os
import shutil
import subprocess

import numpy as np
import pytest

from export import precisions
from protos import artifact
from protos.artifact import MANIFEST, MANIFEST_DIGEST
from server.artifact import newest, read_artifact
from server.errors import BadArtifact
from server.tasks.classification import FUNCTIONS
from server.tasks.registry import TASKS
from tests.artifacts import change_manifest, replace_file, unlist, write_sealed


@pytest.fixture
def copy(artifacts, tmp_path):
    """An artifact to spoil."""
    return shutil.copytree(artifacts / "tiny-bert" / "1", tmp_path / "tiny-bert" / "1")


def test_an_export_can_be_read(artifacts):
    artifact = read_artifact(artifacts / "tiny-bert" / "1")
    assert (artifact.name, artifact.version, artifact.manifest.task) == ("tiny-bert", "1", "fill-mask")
    assert artifact.path(artifact.graph("cpu").file).is_file()
    cases = artifact.golden()
    assert len(cases) >= 3
    for case in cases:
        assert case.inputs["input_ids"].dtype == np.int64
        assert case.outputs["logits"].shape == (len(case.inputs["selected"]), artifact.manifest.text.vocabulary)


def test_a_graph_is_as_large_as_it_is_with_the_weights_beside_it(copy):
    graph = (copy / "cpu.onnx").stat().st_size
    assert read_artifact(copy).graph_bytes("cpu") == graph
    for name in ("cpu.onnx.data", "cpu.onnx-1.data"):
        replace_file(copy, name, bytes(1000))
    artifact = read_artifact(copy)
    shutil.rmtree(copy)  # the manifest knows it
    assert artifact.graph_bytes("cpu") == graph + 2000


def test_a_graph_that_is_not_there_is_refused_by_name(artifacts):
    artifact = read_artifact(artifacts / "tiny-classifier" / "1")
    with pytest.raises(BadArtifact, match=r"found graphs for cpu.*, expected one for npu"):
        artifact.graph("npu")


def test_another_format_is_to_be_exported_again(copy):
    change_manifest(copy, format_version=4, something_new={"of": "that version"})
    with pytest.raises(BadArtifact, match=r"manifest.json: found format_version 4, expected 3"):
        read_artifact(copy)
    change_manifest(copy, format_version=2)
    (copy / MANIFEST_DIGEST).unlink()  # which version 2 did not have
    with pytest.raises(BadArtifact, match=r"manifest.json: found format_version 2, expected 3: export again"):
        read_artifact(copy)


def test_an_altered_file_is_refused(copy):
    contents = (copy / "tokenizer.json").read_bytes()
    (copy / "tokenizer.json").write_bytes(contents + b" ")
    with pytest.raises(BadArtifact, match=r"tokenizer.json: found \d+ bytes, expected \d+: the file was altered"):
        read_artifact(copy)
    (copy / "tokenizer.json").write_bytes(contents[:-1] + b" ")
    with pytest.raises(BadArtifact, match=r"tokenizer.json: found sha256 .* the file was altered"):
        read_artifact(copy)


def test_a_missing_file_is_refused(copy):
    (copy / "golden.safetensors").unlink()
    with pytest.raises(BadArtifact, match=r"golden.safetensors: No such file"):
        read_artifact(copy)


def test_a_used_file_that_the_manifest_does_not_list_is_refused(copy):
    unlist(copy, "cpu.onnx")
    with pytest.raises(BadArtifact, match=r"cpu.onnx not among the files"):
        read_artifact(copy)


@pytest.mark.parametrize("name", ["tiny-classifier", "tiny-vit", "tiny-mixer"])
@pytest.mark.parametrize("change_labels", [lambda labels: labels[1:], lambda labels: [*labels, "more"], lambda _: []])
def test_another_number_of_labels_than_classes_is_refused(name, change_labels, artifacts, tmp_path):
    directory = shutil.copytree(artifacts / name / "1", tmp_path / name / "1")
    labels = list(read_artifact(directory).manifest.labels)
    change_manifest(directory, labels=change_labels(labels))
    expected = f"labels: found {len(change_labels(labels))}, expected {len(labels)}, one for each class of cpu.onnx"
    with pytest.raises(BadArtifact, match=expected):
        read_artifact(directory)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret", "nul\0"])
def test_a_file_outside_the_directory_is_refused(copy, path):
    change_manifest(copy, lambda fields: fields["files"].append({"path": path, "sha256": "0", "bytes": 1}))
    with pytest.raises(BadArtifact, match="expected one inside the directory"):
        read_artifact(copy)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (b"", "found an empty file"),
        (b"{", "found no valid JSON"),
        (b"[]", r"found \[\], expected an object"),
        (b"null", "found null, expected an object"),
        (b"{}", "found no format_version, expected 3"),
        (b'{"format_version": "3"}', 'found format_version "3", expected 3'),
        (b'{"format_version": 3.0}', "found format_version 3.0, expected 3"),
        (b'{"format_version": true}', "found format_version true, expected 3"),
        (b'{"format_version": 3, "name": "a", "name": "b"}', "name: found 2 times in one object, expected once"),
        (b'{"format_version": 3, "name": "\xe9"}', "found byte 0xe9 at 31, expected UTF-8"),
        ("\ufeff{}".encode(), "found UTF-8 with a byte order mark"),
        ("{}".encode("utf-16"), "found UTF-16, expected UTF-8"),
        ("{}".encode("utf-16-le"), "found UTF-16-LE, expected UTF-8"),
        ("{}".encode("utf-32"), "found UTF-32, expected UTF-8"),
        (b'{"format_version": 3, "normalise": NaN}', "found NaN, expected a finite number"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "found no valid JSON"),
        (b"[" * 100_000, "found too many nested values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_that_is_not_json_of_this_version_is_refused(copy, contents, said):
    write_sealed(copy, contents)
    with pytest.raises(BadArtifact, match=rf"manifest.json: {said}"):
        read_artifact(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labells": ["a"]}, "labells: found an unknown field, expected labels"),
        ({"formatVersion": 3}, "formatVersion: found an unknown field, expected format_version"),
        ({"x": 1}, "x: found an unknown field, expected one of format_version, name, "),
        ({"labels": "a"}, 'labels: found "a", expected a list'),
        ({"labels": ["a", 1]}, r"labels\[1\]: found 1, expected a string"),
        ({"labels": ["\ud800"]}, r"labels\[0\]: found .*, expected a string"),
        ({"labels": None}, "labels: found null, expected a list"),
        ({"name": None}, "name: found null, expected a string"),
        ({"version": "1"}, 'version: found "1", expected a whole number from 0'),
        ({"version": True}, "version: found true, expected a whole number"),
        ({"version": 1.0}, "version: found 1.0, expected a whole number"),
        ({"version": -1}, "version: found -1, expected a whole number"),
        ({"version": 1 << 32}, "version: found 4294967296, expected a whole number"),
        ({"normalise": 1}, "normalise: found 1, expected true or false"),
        ({"text": []}, r"text: found \[\], expected an object"),
        ({"tool_versions": {"torch": 2}}, "tool_versions.torch: found 2, expected a string"),
        ({"tool_versions": ["torch"]}, "tool_versions: found .*, expected an object"),
        ({"files": [{"path": "a", "bytes": "7"}]}, r'files\[0\].bytes: found "7", expected a number'),
        ({"files": [{"path": "a", "sha": "7"}]}, r"files\[0\].sha: found an unknown field, expected "),
        ({"graphs": [{"parity": {"cases": 1.5}}]}, r"graphs\[0\].parity.cases: found 1.5, expected a whole number"),
        ({"task": "translate"}, "task: found 'translate', expected one of fill-mask, "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_that_the_exporter_does_not_write_is_refused_by_name(copy, change, said):
    change_manifest(copy, **change)
    with pytest.raises(BadArtifact, match=rf"manifest.json: {said}"):
        read_artifact(copy)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("tiny-bert", {"text": {"truncation_side": "middle"}}, "text.truncation_side: found 'middle', expected one of"),
        ("tiny-bert", {"graphs": [{"target": "npu", "precision": "fp32"}]}, r"graphs\[0\].target: found 'npu'"),
        ("tiny-bert", {"graphs": [{"target": "cpu", "precision": "fp8"}]}, r"graphs\[0\].precision: found 'fp8'"),
        ("tiny-vit", {"function_to_apply": "softmx"}, "function_to_apply: found 'softmx', expected one of softmax"),
        ("tiny-vit", {"function_to_apply": ""}, "function_to_apply: found '', expected one of softmax"),
    ],
)
def test_an_unknown_name_in_the_manifest_is_refused(artifacts, tmp_path, name, change, said):
    directory = shutil.copytree(artifacts / name / "1", tmp_path / name / "1")
    change_manifest(directory, **change)
    with pytest.raises(BadArtifact, match=rf"manifest.json: {said}"):
        read_artifact(directory)


# ---- the digest of the manifest


def test_a_manifest_that_was_edited_is_refused_with_what_to_do(copy):
    contents = (copy / MANIFEST).read_bytes()
    (copy / MANIFEST).write_bytes(contents.replace(b"fill-mask", b"fill-mash"))
    with pytest.raises(BadArtifact, match=r"manifest.json: found sha256 .*: python -m export seal .*tiny-bert/1"):
        read_artifact(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda line: b"",
        lambda line: line[:-1],
        lambda line: line.replace(b"\n", b"\r\n"),
        lambda line: line[:64],
        lambda line: line.upper(),
        lambda line: line + line,
        lambda line: b"\xff" + line[1:],
        lambda line: line.replace(b"manifest.json", b"./manifest.json"),
    ],
)
def test_a_digest_that_sha256sum_did_not_write_is_refused(copy, change):
    digest = copy / MANIFEST_DIGEST
    digest.write_bytes(change(digest.read_bytes()))
    with pytest.raises(BadArtifact, match=r"manifest.json.sha256"):
        read_artifact(copy)


def test_a_manifest_without_its_digest_is_refused(copy):
    (copy / MANIFEST_DIGEST).unlink()
    with pytest.raises(BadArtifact, match=r"manifest.json.sha256: No such file .*expected the sha256 of manifest.json"):
        read_artifact(copy)


def test_the_digest_is_that_of_sha256sum(copy):
    done = subprocess.run(["sha256sum", "-c", MANIFEST_DIGEST], cwd=copy, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "manifest.json: OK\n")


def test_files_that_the_manifest_does_not_list_are_ignored(copy, caplog):
    for name in ("README.md", ".DS_Store", "notes/todo.txt"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_text("of the user's own")
    with caplog.at_level("INFO"):
        assert read_artifact(copy).name == "tiny-bert"
    assert "ignored files that the manifest does not list: .DS_Store, README.md, notes/todo.txt" in caplog.text


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), os.mkfifo])
def test_a_listed_file_that_is_no_regular_file_is_refused(copy, make):
    (copy / "cpu.onnx").unlink()
    make(copy / "cpu.onnx")
    with pytest.raises(BadArtifact, match=r"cpu.onnx: found no regular file, expected \d+ bytes"):
        read_artifact(copy)


def test_the_names_in_the_contract_are_those_that_are_implemented():
    assert set(artifact.TASKS) == set(TASKS)
    assert tuple(artifact.TARGETS) == tuple(precisions.TARGETS)
    assert tuple(artifact.PRECISIONS) == tuple(precisions.PRECISIONS)
    assert tuple(artifact.FUNCTIONS) == tuple(FUNCTIONS)


def test_an_artifact_under_another_name_is_refused(copy):
    renamed = copy.parent.rename(copy.parent.parent / "other")
    with pytest.raises(BadArtifact, match="found tiny-bert version 1, expected other version 1"):
        read_artifact(renamed / "1")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256"])
def test_a_pipe_in_place_of_a_file_is_refused(copy, name):
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(BadArtifact, match=f"{name}: found no regular file"):
        read_artifact(copy)


def test_a_link_has_the_name_and_version_of_the_model_whatever_it_points_to(copy):
    stored = copy.rename(copy.parent.parent / "stored")
    copy.symlink_to(stored)
    assert read_artifact(copy).version == "1"
    other = copy.with_name("2")
    other.symlink_to(stored)
    with pytest.raises(BadArtifact, match="found tiny-bert version 1, expected tiny-bert version 2"):
        read_artifact(other)


def test_the_newest_version_has_the_highest_number(tmp_path):
    for path in ("a/2", "a/10", "a/9", "b/1", "b/x", ".export-123/1", "a/11.part"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "manifest.json").touch()
    (tmp_path / "a" / "99").mkdir()
    assert newest(tmp_path) == {"a": tmp_path / "a" / "10", "b": tmp_path / "b" / "1"}
    assert newest(tmp_path / "nothing") == {}
