"""An artifact is read whole and unaltered, or refused with the reason."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from server.artifact import newest, read_artifact
from server.errors import BadArtifact


@pytest.fixture
def copy(artifacts, tmp_path):
    """An artifact to spoil."""
    return shutil.copytree(artifacts / "tiny-bert" / "1", tmp_path / "tiny-bert" / "1")


def change(directory, **fields):
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | fields))


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
    files = json.loads((copy / "manifest.json").read_text())["files"]
    graph = (copy / "cpu.onnx").stat().st_size
    assert read_artifact(copy).graph_bytes("cpu") == graph
    for name in ("cpu.onnx.data", "cpu.onnx-1.data"):
        (copy / name).write_bytes(bytes(1000))
        files.append({"path": name, "sha256": hashlib.sha256(bytes(1000)).hexdigest()})
    change(copy, files=files)
    assert read_artifact(copy).graph_bytes("cpu") == graph + 2000


def test_a_graph_that_is_not_there_is_refused_by_name(artifacts):
    artifact = read_artifact(artifacts / "tiny-classifier" / "1")
    with pytest.raises(BadArtifact, match=r"found graphs for cpu.*, expected one for npu"):
        artifact.graph("npu")


def test_another_format_is_to_be_exported_again(copy):
    change(copy, format_version=0)
    with pytest.raises(BadArtifact, match="found format_version 0, expected 2: export again"):
        read_artifact(copy)
    change(copy, format_version=3, something_new={"of": "that version"})
    with pytest.raises(BadArtifact, match="found format_version 3, expected 2"):
        read_artifact(copy)


def test_an_altered_file_is_refused(copy):
    with (copy / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(BadArtifact, match=r"tokenizer.json: found sha256 .* the file was altered"):
        read_artifact(copy)


def test_a_missing_file_is_refused(copy):
    (copy / "golden.safetensors").unlink()
    with pytest.raises(BadArtifact, match=r"golden.safetensors: No such file"):
        read_artifact(copy)


def test_a_file_that_the_manifest_does_not_list_is_refused(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    change(copy, files=[file for file in manifest["files"] if file["path"] != "cpu.onnx"])
    with pytest.raises(BadArtifact, match=r"cpu.onnx not among the files"):
        read_artifact(copy)


@pytest.mark.parametrize("name", ["tiny-classifier", "tiny-vit", "tiny-mixer"])
@pytest.mark.parametrize("change_labels", [lambda labels: labels[1:], lambda labels: [*labels, "more"], lambda _: []])
def test_another_number_of_labels_than_classes_is_refused(name, change_labels, artifacts, tmp_path):
    directory = shutil.copytree(artifacts / name / "1", tmp_path / name / "1")
    labels = list(read_artifact(directory).manifest.labels)
    change(directory, labels=change_labels(labels))
    expected = f"labels: found {len(change_labels(labels))}, expected {len(labels)}, one for each class of cpu.onnx"
    with pytest.raises(BadArtifact, match=expected):
        read_artifact(directory)


@pytest.mark.parametrize("path", ["/etc/passwd", "../../secret"])
def test_a_file_outside_the_directory_is_refused(copy, path):
    change(copy, files=[{"path": path, "sha256": "0", "bytes": 1}])
    with pytest.raises(BadArtifact, match="expected one inside the directory"):
        read_artifact(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": "x"}', '{"format_version": 2}'])
def test_a_broken_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BadArtifact):
        read_artifact(copy)


def test_an_artifact_under_another_name_is_refused(copy):
    renamed = copy.parent.rename(copy.parent.parent / "other")
    with pytest.raises(BadArtifact, match="found tiny-bert version 1, expected other version 1"):
        read_artifact(renamed / "1")


def test_the_newest_version_has_the_highest_number(tmp_path):
    for path in ("a/2", "a/10", "a/9", "b/1", "b/x", ".export-123/1", "a/11.part"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "manifest.json").touch()
    (tmp_path / "a" / "99").mkdir()
    assert newest(tmp_path) == {"a": tmp_path / "a" / "10", "b": tmp_path / "b" / "1"}
    assert newest(tmp_path / "nothing") == {}
