"""`inspect`, `verify` and `--list`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from safetensors.numpy import save as serialised
from transformers.activations import ACT2FN

from export import families
from export.__main__ import main
from export.inputs.text import pooling
from export.sources import modules
from models.checkpoints.configs import ARCHITECTURES
from models.checkpoints.tables import LAYOUTS
from models.mlp import ACTIVATIONS
from protos.artifact import GOLDEN_IMAGES, MANIFEST, MANIFEST_DIGEST
from server.artifact import read_artifact
from server.errors import BadArtifact
from tests.artifacts import change_manifest, read_fields, replace_file


def copied(directory: Path, tmp_path: Path) -> Path:
    """A copy of an artifact that a test may change."""
    return shutil.copytree(directory, tmp_path / directory.parent.name / directory.name)


def test_inspect_shows_the_contents(artifacts: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = artifacts("gpt")
    capsys.readouterr()
    assert main(["inspect", str(directory)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny-gpt 1: gpt, generate\n")
    for text in (
        "cuda.onnx",
        "32 nodes, 43 as traced",
        "SkipLayerNormalization      0 → 5",
        "maximum bound by 0.0001",
        "KL",
    ):
        assert text in said
    assert main(["inspect", str(directory), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert account["graphs"][0]["nodes"]["SkipLayerNormalization"] == 5


def test_verify_accepts_an_unchanged_artifact(
    artifacts: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("gpt", "classifier"):
        directory = artifacts(name)
        capsys.readouterr()
        assert main(["verify", str(directory), "--json"]) == 0
        account = json.loads(capsys.readouterr().out)
        assert account["graphs"][0]["maximum"] < 1e-5


def test_verify_finds_a_changed_file(
    artifacts: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(artifacts("mixer"), tmp_path)
    capsys.readouterr()
    with (copy / "cpu.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2")
    assert main(["verify", str(copy)]) == 1
    assert "cpu.onnx: found sha256 " in capsys.readouterr().err
    (copy / "cpu.onnx").unlink()
    assert main(["verify", str(copy)]) == 1
    assert "cpu.onnx: No such file" in capsys.readouterr().err


def test_verify_says_on_which_provider_each_graph_was_checked(
    artifacts: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = artifacts("classifier")
    capsys.readouterr()
    assert main(["verify", str(directory)]) == 0
    _, cpu, cuda, texts = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"  \d\d golden texts: all of them have the token ids of transformers", texts)
    assert cpu.endswith("CPUExecutionProvider")
    if not cuda.endswith("CUDAExecutionProvider"):  # without a GPU
        assert "CPUExecutionProvider; not on CUDA (" in cuda
        assert cuda.endswith("): checked on the CPU, through casts")


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1000])])
def test_inspect_names_a_graph_that_is_missing_or_cut_short(
    damage: Callable[[Path], object],
    artifacts: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = copied(artifacts("mixer"), tmp_path)
    damage(copy / "cpu.onnx")
    assert main(["inspect", str(copy)]) == 1
    assert f"error: {copy / 'cpu.onnx'}: " in capsys.readouterr().err


def test_another_directory_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "found no manifest.json, expected an artifact" in capsys.readouterr().err


def test_list_names_families_and_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    said = capsys.readouterr().out
    for text in ("BertForMaskedLM", "GPT2LMHeadModel", "preprocessor_config.json", "--target cuda: fp16, fp32"):
        assert text in said
    assert main(["--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["families"].keys() == LAYOUTS.keys()


def test_the_list_names_every_architecture_that_can_be_loaded() -> None:
    for name, (family, _) in ARCHITECTURES.items():
        assert name in families.FAMILIES[family]


def test_the_list_names_every_module_and_pooling_of_sentence_transformers() -> None:
    for name in (*modules.KINDS, *pooling.MODES):
        assert name in families.SENTENCE_TRANSFORMERS[0]


def test_the_list_names_every_activation_that_is_missing() -> None:
    for name in set(ACT2FN) - set(ACTIVATIONS):
        assert any(line.startswith("activations") and name in line for line in families.CHECKPOINTS)


def test_golden_images_are_shown_and_checked_again(
    artifacts: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(artifacts("vit"), tmp_path)
    capsys.readouterr()
    assert main(["inspect", str(copy)]) == 0
    assert "7 golden images, as transformers prepares them" in capsys.readouterr().out
    assert main(["verify", str(copy)]) == 0
    assert "7 golden images: at most 0 grey levels off" in capsys.readouterr().out
    change_manifest(copy, lambda fields: fields["image"].update(resample="nearest"))
    assert main(["verify", str(copy), "--json"]) == 1
    assert "golden image 0: found a pixel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: [tensors.pop(f"6/{part}") for part in ("file", "pixel_values")], "found 6 images, expected 7"),
        (
            lambda tensors: tensors.update({"0/pixel_values": tensors["0/pixel_values"].astype(np.float16)}),
            "image 0: found a file in uint8 and pixel values in float16, expected uint8 and float32",
        ),
    ],
)
def test_golden_images_that_the_server_refuses_are_refused(
    change: Callable[[dict[str, np.ndarray]], object],
    said: str,
    artifacts: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = copied(artifacts("vit"), tmp_path)
    tensors = load_file(copy / GOLDEN_IMAGES)
    change(tensors)
    replace_file(copy, GOLDEN_IMAGES, serialised(tensors))
    capsys.readouterr()
    assert main(["verify", str(copy)]) == 1
    assert f"{GOLDEN_IMAGES}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda copy: (copy / MANIFEST).write_text((copy / MANIFEST).read_text() + " "),
        lambda copy: (copy / MANIFEST_DIGEST).unlink(),
        lambda copy: change_manifest(copy, labells=[]),
        lambda copy: change_manifest(copy, labels=["too", "few"]),
        lambda copy: change_manifest(copy, name="other"),
        lambda copy: (copy / "golden.safetensors").write_bytes(b""),
    ],
)
def test_inspect_and_verify_refuse_what_the_server_refuses(
    command: str,
    damage: Callable[[Path], object],
    artifacts: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = copied(artifacts("mixer"), tmp_path)
    damage(copy)
    with pytest.raises(BadArtifact) as refused:
        read_artifact(copy)
    capsys.readouterr()
    assert main([command, str(copy)]) == 1
    assert capsys.readouterr().err == f"error: {refused.value}\n"


def test_files_that_the_manifest_does_not_list_are_shown(
    artifacts: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = copied(artifacts("mixer"), tmp_path)
    (copy / "notes.txt").write_text("of the user's own")
    capsys.readouterr()
    for command in ("inspect", "verify"):
        assert main([command, str(copy)]) == 0
        assert "ignored, because the manifest does not list them: notes.txt" in capsys.readouterr().out


# ---- seal


def edit(directory: Path, change: Callable[[dict], object]) -> None:
    """Edit a manifest as a user does, with an editor."""
    fields = read_fields(directory)
    change(fields)
    (directory / MANIFEST).write_text(json.dumps(fields, indent=4))


def test_a_renamed_model_with_other_labels_is_served_once_it_is_sealed(
    artifacts: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(artifacts("mixer"), tmp_path / "digits" / "1")
    labels = [f"the digit {n}" for n in range(10)]
    edit(copy, lambda fields: fields.update(name="digits", labels=labels))
    with pytest.raises(BadArtifact, match="python -m export seal"):
        read_artifact(copy)
    capsys.readouterr()
    assert main(["seal", str(copy)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("digits 1: all ")
    assert said.endswith("manifest.json.sha256 has the digest of manifest.json\n")
    assert list(read_artifact(copy).manifest.labels) == labels
    assert main(["verify", str(copy)]) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.update(name="digits"), "found digits version 1, expected tiny-vit version 1"),
        (lambda fields: fields.update(labells=[]), "manifest.json: labells: found an unknown field, expected labels"),
        (lambda fields: fields["labels"].pop(), "manifest.json: labels: found 9, expected 10"),
        (lambda fields: fields["image"].update(resample="nearest"), "golden image 0: found a pixel"),
        (lambda fields: fields["golden"].update(images=6), "golden_images.safetensors: found 7 images, expected 6"),
        (lambda fields: fields["golden"].update(cases=1), "golden.safetensors: found "),
    ],
)
def test_a_change_that_the_server_would_refuse_is_not_sealed(
    change: Callable[[dict], object],
    said: str,
    artifacts: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = copied(artifacts("vit"), tmp_path)
    before = (copy / MANIFEST_DIGEST).read_bytes()
    edit(copy, change)
    capsys.readouterr()
    assert main(["seal", str(copy)]) == 1
    assert said in capsys.readouterr().err
    assert (copy / MANIFEST_DIGEST).read_bytes() == before
