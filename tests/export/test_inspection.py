"""`inspect`, `verify` and `--list`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.activations import ACT2FN

from export import families
from export.__main__ import main
from export.inputs.text import pooling
from export.sources import modules
from models.checkpoints.configs import ARCHITECTURES
from models.checkpoints.tables import LAYOUTS
from models.mlp import ACTIVATIONS


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
    copy = tmp_path / "1"
    shutil.copytree(artifacts("mixer"), copy)
    capsys.readouterr()
    with (copy / "cpu.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2")
    assert main(["verify", str(copy)]) == 1
    assert "cpu.onnx: found other contents" in capsys.readouterr().err
    (copy / "cpu.onnx").unlink()
    assert main(["verify", str(copy)]) == 1
    assert "cpu.onnx: found no such file" in capsys.readouterr().err


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
    copy = tmp_path / "1"
    shutil.copytree(artifacts("mixer"), copy)
    damage(copy / "cpu.onnx")
    assert main(["inspect", str(copy)]) == 1
    assert f"{copy / 'cpu.onnx'}: found no ONNX graph (" in capsys.readouterr().err


def test_another_directory_is_one_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path)]) == 1
    assert "found no manifest, expected an artifact" in capsys.readouterr().err


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
    copy = tmp_path / "1"
    shutil.copytree(artifacts("vit"), copy)
    capsys.readouterr()
    assert main(["inspect", str(copy)]) == 0
    assert "7 golden images, as transformers prepares them" in capsys.readouterr().out
    assert main(["verify", str(copy)]) == 0
    assert "7 golden images: at most 0 grey levels off" in capsys.readouterr().out
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["image"]["resample"] = "nearest"
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", str(copy), "--json"]) == 1
    assert "golden image 0: found a pixel" in capsys.readouterr().err
