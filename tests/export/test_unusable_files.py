"""Files that cannot be what they are named for, and sizes that no file can have, are refused at once and by name."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from export.artifact import store

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345678\n"
ABSURD = (10**9, 10**19, 10**40)


def changed(source: Path, tmp_path: Path, **changes: Any) -> Path:
    """A copy of a checkpoint with other keys in its config.json."""
    directory = shutil.copytree(source, tmp_path / "changed", dirs_exist_ok=True)
    config = json.loads((directory / "config.json").read_text()) | changes
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def refused(outcome: Any, said: str) -> None:
    """Assert that an export failed with one error and wrote nothing."""
    assert (outcome.status, outcome.visible) == (1, [])
    assert said in outcome.complained
    assert "Traceback" not in outcome.complained


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "model.safetensors"),
        ("bert", "tokenizer.json"),
        ("bert", "tokenizer_config.json"),
        ("bert", "config.json"),
        ("embedder", "modules.json"),
        ("embedder", "1_Pooling/config.json"),
        ("vit", "preprocessor_config.json"),
        ("vit", "model.safetensors"),
        ("mixer", "config.json"),
    ],
)
def test_a_pointer_of_git_lfs_is_named(
    kind: str, name: str, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoints[kind], tmp_path / "cloned")
    (source / name).write_text(POINTER)
    outcome = export(source, "--target", "cpu")
    refused(outcome, f"{source / name}: found a pointer of Git LFS, expected the file itself: run `git lfs pull`")


def test_a_pointer_in_place_of_a_shard_or_of_another_tokenizer_is_named(
    export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = shutil.copytree(checkpoints["bert"], tmp_path / "cloned")
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-1-of-1.safetensors"}}))
    (source / "model-1-of-1.safetensors").write_text(POINTER)
    refused(export(source), "model-1-of-1.safetensors: found a pointer of Git LFS")
    (tmp_path / "tokenizer.json").write_text(POINTER)
    refused(
        export(checkpoints["bert"], "--tokenizer", tmp_path / "tokenizer.json"),
        "tokenizer.json: found a pointer of Git",
    )


@pytest.mark.parametrize("name", ["picture.png", "pictures.txt"])
def test_a_pointer_in_place_of_an_image_or_a_list_is_named(
    name: str, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(POINTER)
    outcome = export(checkpoints["mixer"], "--target", "cpu", "--evaluate", tmp_path / name)
    refused(outcome, f"{name}: found a pointer of Git LFS")


@pytest.mark.parametrize("name", ["photo.heic", "photo.jpg", "photo.tga"])
def test_an_image_in_a_format_that_the_server_does_not_read_is_refused_by_name(
    name: str, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    contents, found = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a HEIC file"
    if name.endswith("tga"):
        stream, found = io.BytesIO(), "a file in TGA"
        Image.new("RGB", (4, 4)).save(stream, "TGA")
        contents = stream.getvalue()
    (tmp_path / name).write_bytes(contents)
    outcome = export(checkpoints["mixer"], "--target", "cpu", "--evaluate", tmp_path / name)
    refused(outcome, f"{name}: found {found}, expected JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF")


# ---- sizes

BERT_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
SIZES = {
    "bert": BERT_SIZES,
    "classifier": (*BERT_SIZES, "num_labels"),
    "embedder": BERT_SIZES,
    "gpt": ("n_embd", "n_layer", "n_head", "n_inner", "vocab_size", "n_positions"),
    "vit": ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size", "num_labels"),
}


@pytest.mark.parametrize("size", ABSURD)
@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind, keys in SIZES.items() for key in keys])
def test_an_absurd_size_is_refused_before_anything_is_built(
    kind: str, key: str, size: int, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    refused(export(changed(checkpoints[kind], tmp_path, **{key: size})), "config.json: ")


@pytest.mark.parametrize("size", ABSURD)
@pytest.mark.parametrize("key", ["embed_dim", "num_blocks", "img_size", "patch_size", "mlp_ratio", "in_chans"])
def test_an_absurd_size_of_a_mixer_is_refused_before_anything_is_built(
    key: str, size: int, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    arguments = json.loads((checkpoints["mixer"] / "config.json").read_text())["model_args"]
    refused(export(changed(checkpoints["mixer"], tmp_path, model_args=arguments | {key: size})), "config.json: ")
    refused(export(changed(checkpoints["mixer"], tmp_path, num_classes=size)), "config.json: ")


def test_more_layers_than_tensors_are_named(export, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    outcome = export(changed(checkpoints["bert"], tmp_path, num_hidden_layers=10**9))
    refused(outcome, "config.json: num_hidden_layers is 1000000000: found ")
    assert "tensors in model.safetensors, expected at least one for each layer" in outcome.complained


@pytest.mark.parametrize("pixels", ["0", "-32", "4001", "1000000000"])
def test_an_image_size_that_the_server_refuses_is_refused(pixels: str, export, checkpoints: dict[str, Path]) -> None:
    refused(export(checkpoints["vit"], "--image-size", pixels), f"--image-size: found {pixels}, expected 1 to 4000")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), [0.5], "0.5", -1, True, None, [float("inf"), 4]])
def test_an_odd_mlp_ratio_is_refused(value: object, export, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    arguments = json.loads((checkpoints["mixer"] / "config.json").read_text())["model_args"]
    source = changed(checkpoints["mixer"], tmp_path, model_args=arguments | {"mlp_ratio": value})
    refused(export(source), "model.safetensors: " if value is None else "config.json: ")


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 10**30, "width": 10**30}},
        {"size": {"shortest_edge": 10**30}},
        {"do_center_crop": True, "crop_size": {"height": 10**30, "width": 10**30}},
        {"rescale_factor": 10**400},
        {"image_std": [10**400] * 3},
    ],
    ids=lambda settings: list(settings)[-1],
)
def test_an_absurd_size_of_images_is_refused(
    settings: dict[str, Any], export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = changed(checkpoints["vit"], tmp_path)
    file = source / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    refused(export(source), "preprocessor_config.json: ")


@pytest.mark.parametrize("settings", [{"crop_pct": 1e-300}, {"crop_pct": 5e-324}, {"std": [10**400] * 3}])
def test_an_absurd_setting_of_timms_images_is_refused(
    settings: dict[str, Any], export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    before = json.loads((checkpoints["mixer"] / "config.json").read_text())["pretrained_cfg"]
    refused(export(changed(checkpoints["mixer"], tmp_path, pretrained_cfg=before | settings)), "config.json: ")


@pytest.mark.parametrize("epsilon", [float("inf"), float("nan"), 10**400, 0, -1e-12, True, "1e-5"])
@pytest.mark.parametrize(("kind", "key"), [("bert", "layer_norm_eps"), ("gpt", "layer_norm_epsilon")])
def test_an_odd_epsilon_is_refused(
    kind: str, key: str, epsilon: object, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    refused(export(changed(checkpoints[kind], tmp_path, **{key: epsilon})), "config.json: ")


# ---- the type of a classifier


@pytest.mark.parametrize("kind", ["classifier", "vit"])
@pytest.mark.parametrize("value", ["multi_label", "", 1, ["regression"], {}])
def test_an_odd_problem_type_is_refused_by_name(
    kind: str, value: object, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    outcome = export(changed(checkpoints[kind], tmp_path, problem_type=value))
    refused(
        outcome, f"config.json: problem_type is {value!r}: expected regression, single_label_classification, multi_"
    )


@pytest.mark.parametrize(
    ("value", "function"),
    [
        (None, "softmax"),
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
        ("regression", "none"),
    ],
)
def test_the_problem_type_chooses_the_function(
    value: str | None, function: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    from tests.export.saved_models import loaded  # imports torch

    assert (
        loaded(changed(checkpoints["classifier"], tmp_path, problem_type=value)).manifest.function_to_apply == function
    )


def test_published_artifacts_can_be_read(artifacts: Callable[[str], Path]) -> None:
    for kind in ("bert", "vit", "gpt"):
        assert store.read(artifacts(kind)).golden.cases > 0
