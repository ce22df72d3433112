"""The error on the user's own inputs, and the change of the score on a held-out sample."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.json_format import Parse
from PIL import Image
from safetensors.numpy import save, save_file
from tokenizers import Tokenizer

from export.__main__ import main
from export.parity import held_out, preparation
from protos.manifest_pb2 import ImageInput, Manifest, Size
from server.images.preprocess import ImageDecoder

ROOT = Path(__file__).resolve().parents[2]
TEXTS = "The caller may catch it.\n\nA list is a mutable sequence.\nThe statement raises an [MASK].\n"


def manifest(artifacts: Path, name: str) -> Manifest:
    return Parse((artifacts / name / "1/manifest.json").read_text(), Manifest())


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_the_error_on_the_users_texts_is_reported(
    kind: str, export, checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text(TEXTS)
    command = (checkpoints[kind], "--target", "cpu=int8-weights", "--evaluate", tmp_path / "mine.txt")
    outcome = export(*command)
    assert "3 inputs of mine.txt" in outcome.said
    (graph,) = manifest(outcome.artifacts, f"tiny-{kind}").graphs
    assert (graph.evaluation.file, graph.evaluation.inputs) == ("mine.txt", 3)
    assert 0 < graph.evaluation.parity.root_mean_square < 0.05
    assert graph.evaluation.parity.top1_agreement > 0.5

    assert main(["inspect", str(outcome.artifacts / f"tiny-{kind}/1")]) == 0
    assert "on 3 inputs of mine.txt: maximum" in capsys.readouterr().out
    assert "up to date" in export(*command).said
    (tmp_path / "mine.txt").write_text("Other words.")
    assert export(*command).visible == ["1", "2"]


def test_the_error_on_the_users_images_is_reported(export, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(own / f"{number}.png")
    (tmp_path / "list.txt").write_text("own/0.png\nown/2.png\n")
    artifact = "tiny-mixer"
    for version, (path, count) in enumerate([(own, 3), (tmp_path / "list.txt", 2), (own / "1.png", 1)], start=1):
        outcome = export(checkpoints["mixer"], "--target", "cpu", "--evaluate", path)
        text = (outcome.artifacts / artifact / str(version) / "manifest.json").read_text()
        evaluation = json.loads(text)["graphs"][0]["evaluation"]
        assert evaluation["inputs"] == count
        assert evaluation["parity"]["maximum"] < 1e-5


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        (None, "mine: No such file or directory"),
        (b"", "mine: found no text, expected one on each line"),
        (b"\xff\xfe\x00", "mine: found other bytes at 0, expected text in UTF-8"),
        (b"no-such.png\n", "no-such.png: No such file or directory, expected an image"),
        (b"mine\n", "mine: found no image, expected JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"),
    ],
)
def test_an_invalid_evaluation_file_is_one_clear_error(
    contents: bytes | None, complaint: str, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    if contents is not None:
        (tmp_path / "mine").write_bytes(contents)
    outcome = export(checkpoints["mixer"], "--evaluate", tmp_path / "mine")
    assert (outcome.status, outcome.visible) == (1, [])
    assert complaint in outcome.complained
    assert outcome.complained.count("\n") == 1


def test_the_change_of_the_score_is_reported(export, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Beside a checkpoint lies a sample; the labels are PyTorch's own, so that its score is known."""
    source = tmp_path / "tiny-vit"
    shutil.copytree(checkpoints["vit"], source)
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32), np.uint8)
    save_file({"images": images, "labels": np.zeros(20, np.uint8)}, source / "held-out.safetensors")
    outcome = export(source, "--target", "cpu=int8-weights")
    score = manifest(outcome.artifacts, "tiny-vit").graphs[0].held_out
    assert score.measure == "accuracy"
    assert 0 <= score.pytorch <= 1
    assert abs(score.graph - score.pytorch) <= 0.1
    assert f"accuracy {score.pytorch:.4g} → {score.graph:.4g}" in outcome.said


@pytest.mark.parametrize(
    ("kind", "name", "contents", "complaint"),
    [
        ("bert", "held-out.txt", b"caf\xe9", "held-out.txt: found other bytes at 3, expected text in UTF-8"),
        ("gpt", "held-out.txt", b"a\n", "held-out.txt: found nothing to count, expected texts of several words"),
        ("vit", "held-out.safetensors", b"broken", "held-out.safetensors: found no safetensors file ("),
        ("vit", "held-out.safetensors", save({"images": np.zeros(3)}), "{'images': 'float64 [3]'}, expected images"),
    ],
)
def test_an_invalid_held_out_sample_is_one_clear_error(
    kind: str, name: str, contents: bytes, complaint: str, export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkpoints[kind], source)
    (source / name).write_bytes(contents)
    outcome = export(source, "--target", "cpu=int8-weights")
    assert (outcome.status, outcome.visible) == (1, [])
    assert complaint in outcome.complained


def test_changes_of_the_listed_images_are_detected_and_other_files_are_ignored(
    export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    (own / "beside").mkdir(parents=True)
    (tmp_path / "list.txt").write_text("own/0.png\n")
    for path in (own, tmp_path / "list.txt"):
        Image.new("RGB", (40, 50), "red").save(own / "0.png")
        command = (checkpoints["mixer"], "--target", "cpu", "--evaluate", path, "--name", path.name.split(".")[0])
        assert export(*command).status == 0
        (own / "notes.txt").write_text(f"of {path}")
        assert "up to date" in export(*command).said
        Image.new("RGB", (40, 50), "blue").save(own / "0.png")
        assert "2 is ready" in export(*command).said


def test_long_texts_are_scored_in_small_batches_with_the_same_result(checkpoints: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoints["gpt"] / "tokenizer.json"))
    encodings = tokenizer.encode_batch(["A list is a mutable sequence.", "The caller", "may catch it", "else"])
    batches = list(preparation.in_batches(encodings, max_tokens=len(encodings[0])))
    assert all(len(rows) == 1 or len(rows) * len(rows[-1]) <= len(encodings[0]) for rows in batches)
    assert sum(map(len, batches)) == len(encodings)
    logits, targets = np.random.default_rng(0).standard_normal((200, 9)), np.arange(200) % 9
    sample = held_out.Sample("bits", [({}, targets)], held_out.bits, 1)
    assert sample.score(lambda inputs: logits) == pytest.approx(held_out.bits(logits, targets), rel=1e-12)


def test_scores_are_counted_correctly() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25, 1e-9, 1e-9, 1e-9, 1e-9], [0.25, 0.25, 0.5, 1e-9, 1e-9, 1e-9, 1e-9]]))
    assert held_out.correct(logits, np.array([0, 0])) == 1
    assert held_out.bits(logits, np.array([0, 0])) == pytest.approx(1 + 2, abs=1e-6)
    falling = -np.arange(14.0).reshape(2, 7)
    assert held_out.among_first(falling, np.array([4, 5])) == 1


@pytest.mark.parametrize(
    "image",
    [
        ImageInput(height=32, width=32, resize=Size(height=32, width=32), resample="bicubic", rescale=1 / 255),
        ImageInput(
            height=24,
            width=24,
            resize=Size(shortest_edge=28),
            crop=Size(height=24, width=24),
            rescale=1 / 255,
            mean=[0.5, 0.4, 0.3],
            deviation=[0.5, 0.6, 0.7],
        ),
        ImageInput(height=64, width=64, crop=Size(height=64, width=64)),
    ],
)
def test_pictures_are_prepared_as_the_server_prepares_them(image: ImageInput) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    picture = Image.fromarray(pixels)
    found = preparation.pixels([picture], image)["pixel_values"][0]
    file = io.BytesIO()
    picture.save(file, "PNG")
    np.testing.assert_allclose(found, ImageDecoder(image).decode(file.getvalue()), atol=1e-6)
