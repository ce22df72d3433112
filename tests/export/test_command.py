"""`python -m export` as its user meets it: what it says, what it leaves, and what it does not do twice."""

import fcntl
import gc
import io
import json
import pty
import resource
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
from safetensors.numpy import load_file, save_file

from export.__main__ import main
from export.artifact import graph_writer, store
from export.graph.trace import trace
from export.progress import Progress
from export.sources import lookup
from protos.manifest import unlisted_files
from tests.artifacts import change_manifest

ROOT = Path(__file__).resolve().parents[2]


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text("utf-8"))


def test_an_unchanged_source_is_not_exported_again_and_a_changed_one_beside_the_first(
    export, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_writer, "trace", trace)  # each time
    source = tmp_path / "mine"
    shutil.copytree(checkpoints["mixer"], source)
    assert export(source, "--target", "cpu").visible == ["1"]
    again = export(source, "--target", "cpu")
    assert (again.status, again.visible) == (0, ["1"])
    assert "up to date" in again.said

    # The same weights give the same bytes, whatever the name and wherever they lie.
    first, other = again.artifacts / "mine/1", again.artifacts / "other/1"
    assert export(checkpoints["mixer"], "--target", "cpu", "--name", "other").status == 0
    assert (first / "cpu.onnx").read_bytes() == (other / "cpu.onnx").read_bytes()

    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {"head.bias": tensors["head.bias"] + 1}, source / "model.safetensors")
    before = (first / "manifest.json").read_bytes()
    assert export(source, "--target", "cpu").said.endswith("/mine/2 is ready\n")
    assert (first / "manifest.json").read_bytes() == before
    assert manifest(first)["source"]["digest"] != manifest(first.parent / "2")["source"]["digest"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda directory: (directory / "cpu.onnx").write_bytes(b""), "cpu.onnx: found 0 bytes, expected"),
        (lambda directory: (directory / "manifest.json").write_bytes(b""), "manifest.json: found an empty file"),
        (lambda directory: (directory / "manifest.json").unlink(), "manifest.json: No such file"),
        (lambda directory: change_manifest(directory, format_version=2), "found format_version 2, expected 3"),
    ],
    ids=["graph", "empty", "none", "version 2"],
)
def test_an_artifact_that_the_server_refuses_is_exported_again(
    damage: Callable[[Path], object], said: str, export, checkpoints: dict[str, Path]
) -> None:
    first = export(checkpoints["mixer"], "--target", "cpu")
    damage(first.artifacts / "tiny-mixer/1")
    again = export(checkpoints["mixer"], "--target", "cpu")
    assert (again.status, again.visible) == (0, ["1", "2"])
    assert said in again.said


def test_an_export_prints_its_steps(export, checkpoints: dict[str, Path]) -> None:
    said = export(checkpoints["mixer"], "--target", "cpu", "--name", "other").said
    for step in ("read the source", "run PyTorch", "trace", "fuse", "compare", "publish"):
        assert step in said
    assert "40 → 36 nodes: Add 13 → 3, " in said
    for measure in ("maximum ", "absolute", "root mean square ", "top-1 100.0%", "KL "):
        assert measure in said
    assert said.endswith("/other/1 is ready\n")


def test_targets_can_be_named_in_any_order(export, checkpoints: dict[str, Path]) -> None:
    outcome = export(checkpoints["mixer"], "--target", "cuda=fp16,cpu=fp32")
    assert outcome.status == 0, outcome.complained
    graphs = manifest(outcome.artifacts / "tiny-mixer/1")["graphs"]
    assert [(graph["target"], graph["precision"]) for graph in graphs] == [("cpu", "fp32"), ("cuda", "fp16")]


def test_weights_too_large_for_one_file_get_a_file_of_their_own(
    export, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_writer, "EXTERNAL_BYTES", 10_000)
    outcome = export(checkpoints["mixer"], "--target", "cpu")
    directory = outcome.artifacts / "tiny-mixer/1"
    sizes = {file["path"]: file["bytes"] for file in manifest(directory)["files"]}
    assert sizes["cpu.onnx"] < 50_000 < sizes["cpu.onnx.data"]
    assert {path.name for path in directory.iterdir()} == {*sizes, "manifest.json", "manifest.json.sha256"}


def test_large_weights_are_split_into_several_files(
    export, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(graph_writer, "EXTERNAL_BYTES", 10_000)
    monkeypatch.setattr(graph_writer, "SHARD_BYTES", 100_000)
    directory = export(checkpoints["mixer"], "--target", "cpu").artifacts / "tiny-mixer/1"
    sizes = {file["path"]: file["bytes"] for file in manifest(directory)["files"]}
    weights = [size for name, size in sizes.items() if name.endswith(".data")]
    assert len(weights) > 1
    assert max(weights) <= 100_000
    assert main(["verify", str(directory)]) == 0
    assert f"all {len(sizes)} files" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp32", "int8-weights"])
def test_no_graph_is_in_memory_while_its_file_is_compared(
    precision: str, export, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, prove = [], graph_writer.prove

    def counted(*arguments: object) -> object:
        alive.append(sum(type(each) is onnx_ir.Model for each in gc.get_objects()))
        return prove(*arguments)

    monkeypatch.setattr(graph_writer, "prove", counted)
    gc.collect()
    before = sum(type(each) is onnx_ir.Model for each in gc.get_objects())
    outcome = export(checkpoints["gpt"], "--target", f"cpu={precision}")
    assert outcome.status == 0, outcome.complained
    assert set(alive) == {before}
    directory = outcome.artifacts / "tiny-gpt/1"
    assert unlisted_files(directory, store.read(directory)) == []  # no graph in fp32 is left behind


def test_the_up_to_date_check_does_not_wait_for_torch(
    artifacts: Callable[[str], Path], checkpoints: dict[str, Path]
) -> None:
    code = (
        "import sys; from export.__main__ import main;"
        f"assert main([{str(checkpoints['bert'])!r}, '--artifacts', {str(artifacts('bert').parents[1])!r}]) == 0;"
        "assert not {'torch', 'onnx', 'onnxruntime', 'transformers', 'huggingface_hub'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout


def test_the_manifest_describes_the_artifact(artifacts: Callable[[str], Path]) -> None:
    found = manifest(artifacts("bert"))
    assert (found["format_version"], found["version"], found["name"]) == (3, 1, "tiny-bert")
    assert (found["architecture"], found["task"]) == ("bert", "fill-mask")
    assert [(graph["target"], graph["precision"]) for graph in found["graphs"]] == [("cpu", "fp32"), ("cuda", "fp16")]
    assert found["text"] == {
        "tokenizer": "tokenizer.json",
        "vocabulary": 200,
        "max_length": 64,
        "segments": 2,
        "pad_id": 0,
        "mask_id": 4,
        "truncation_side": "right",
        "token_types": True,
    }
    assert {file["path"] for file in found["files"]} == {
        "cpu.onnx",
        "cuda.onnx",
        "golden.safetensors",
        "golden_texts.json",
        "tokenizer.json",
    }
    for each in found["graphs"]:
        assert each["parity"]["maximum"] > 0
        assert "CPUExecutionProvider" in each["parity"]["measured_on"]
    assert {"torch", "onnx", "onnxscript", "tokenizers", "transformers"} <= found["tool_versions"].keys()


def test_the_manifest_of_a_generator_describes_its_cache(artifacts: Callable[[str], Path]) -> None:
    found = manifest(artifacts("gpt"))
    assert found["cache"] == {"layers": 2, "heads": 4, "head_width": 16}
    assert found["text"]["end_ids"] == [0]
    cpu, cuda = found["graphs"]
    names = [tensor["name"] for tensor in cpu["inputs"]]
    assert names[:5] == ["input_ids", "position_ids", "lengths", "total_sequence_length", "selected"]
    assert names[5:] == ["past_key.0", "past_value.0", "past_key.1", "past_value.1"]
    assert [tensor["name"] for tensor in cpu["outputs"]][:4] == ["logits", "top_scores", "top_ids", "logsumexp"]
    assert cpu["inputs"][5] == {"name": "past_key.0", "datatype": "FP32", "shape": ["batch", "4", "capacity", "16"]}
    assert (cuda["inputs"][5]["datatype"], cuda["outputs"][0]["datatype"]) == ("FP16", "FP32")


def test_the_manifest_of_a_classifier_names_its_classes(artifacts: Callable[[str], Path]) -> None:
    found = manifest(artifacts("classifier"))
    assert (found["labels"], found["function_to_apply"]) == (["bad", "fair", "good"], "softmax")
    image = manifest(artifacts("mixer"))
    assert image["labels"][7] == "digit 7"
    assert image["image"]["resize"] == {"shortest_edge": 36}


@pytest.mark.parametrize(("name", "result"), [("bert", "logits"), ("gpt", "logits"), ("embedder", "embedding")])
def test_the_artifact_has_golden_cases(name: str, result: str, artifacts: Callable[[str], Path]) -> None:
    tensors = load_file(artifacts(name) / "golden.safetensors")
    numbers = {key.split("/")[0] for key in tensors}
    assert len(numbers) >= 3
    rows = {len(tensors[f"{number}/input/input_ids"]) for number in numbers}
    assert 1 in rows
    assert max(rows) > 1
    assert any(len(set(tensors[f"{number}/input/lengths"].tolist())) > 1 for number in numbers)
    assert all(tensors[f"{number}/output/{result}"].dtype == np.float32 for number in numbers)
    assert not any("past" in key or "total" in key for key in tensors)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["nowhere"], 1, "nowhere: found nothing of this name, expected a bundled model"),
        (["mixer", "--target", "tpu"], 2, "--target: found 'tpu', expected one of cpu, cuda"),
        (["mixer", "--target", "cpu=fp16"], 2, "--target cpu: found 'fp16', expected one of fp32"),
        (["mixer", "--target", "cpu,cpu"], 2, "--target: found cpu=fp32 twice"),
        (["mixer", "gpt", "--name", "both"], 2, "--name: found 2 sources, expected one"),
        (["mixer", "--name", "a/b"], 2, "--name: found 'a/b', expected letters"),
        (["mixer", "--name", "x.raw"], 2, "--name: found 'x.raw'"),
        (["gpt", "--target", "cuda=fp32"], 1, "GroupQueryAttention has no fp32 kernel on CUDA"),
    ],
)
def test_invalid_options_are_one_line_of_error(
    export, checkpoints: dict[str, Path], arguments: list[str], status: int, text: str
) -> None:
    outcome = export(*(str(checkpoints.get(argument, argument)) for argument in arguments))
    assert outcome.status == status
    assert outcome.complained.startswith("error: ")
    assert text in outcome.complained
    assert outcome.complained.count("\n") == 1
    assert outcome.visible == []


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "break_it", "text"),
    [
        ("gpt", lambda d: change_config(d, n_head=7), "width 64 cannot be cut into 7 heads"),
        ("bert", lambda d: change_config(d, architectures=["T5Model"]), "T5Model"),
        ("bert", lambda d: change_config(d, hidden_act="prelu"), "hidden_act is 'prelu': expected one of gelu,"),
        ("bert", lambda d: (d / "config.json").write_text("{"), "config.json: found no valid JSON"),
        ("bert", lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
        ("bert", lambda d: (d / "tokenizer.json").unlink(), "tokenizer: found none, expected tokenizer.json"),
        ("bert", lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer: its files cannot be read"),
        ("vit", lambda d: (d / "preprocessor_config.json").unlink(), "preprocessor_config.json: found none"),
        (
            "mixer",
            lambda d: change_config(d, architecture="vit_base_patch16_224"),
            "architecture is 'vit_base_patch16_224'",
        ),
        (
            "embedder",
            lambda d: (d / "1_Pooling/config.json").write_text('{"pooling_mode": "min"}'),
            "1_Pooling/config.json: pooling_mode is 'min'",
        ),
    ],
)
def test_a_source_that_cannot_be_exported_is_named(
    export, checkpoints: dict[str, Path], tmp_path: Path, name: str, break_it, text: str
) -> None:
    source = tmp_path / "broken"
    shutil.copytree(checkpoints[name], source)
    break_it(source)
    outcome = export(source)
    assert (outcome.status, outcome.visible) == (1, [])
    assert outcome.complained.startswith("error: ")
    assert text in outcome.complained


def test_a_directory_that_cannot_be_written_is_named(checkpoints: dict[str, Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "artifacts").write_text("a file")
    assert main([str(checkpoints["mixer"]), "--artifacts", str(tmp_path / "artifacts"), "--target", "cpu"]) == 1
    assert str(tmp_path / "artifacts") in capsys.readouterr().err


def test_a_full_disk_leaves_no_partial_artifact_and_keeps_the_older_version(
    export, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "mine"
    shutil.copytree(checkpoints["mixer"], source)
    first = export(source, "--target", "cpu")
    before = (first.artifacts / "mine/1/manifest.json").read_bytes()

    change_config(source, note="another digest")
    with files_of_at_most(10_000):
        outcome = export(source, "--target", "cpu")
    assert (outcome.status, outcome.visible) == (1, ["1"])
    assert outcome.complained.startswith("error: ")
    assert outcome.complained.count("\n") == 1
    assert [path.name for path in first.artifacts.iterdir()] == ["mine"]  # no hidden directory either
    assert (first.artifacts / "mine/1/manifest.json").read_bytes() == before


@contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """The system refuses to write on, as it does when a disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


HELD = """
import signal, sys
from export.__main__ import main
from export.artifact import graph_writer

def hold(*_):
    print("held", flush=True)
    signal.pause()

graph_writer.prove = hold
main(sys.argv[1:])
"""


def test_an_export_killed_while_it_writes_is_never_seen(export, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(checkpoints["mixer"]), "--artifacts", str(tmp_path / "artifacts"), "--target", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-c", HELD, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as killed:
        assert any("held" in line for line in killed.stdout or ())  # the first graph is on the disk
        killed.kill()
    (left,) = (tmp_path / "artifacts").iterdir()
    assert left.name.startswith(".export-")
    assert (left / "cpu.onnx").exists()

    assert export(checkpoints["mixer"], "--target", "cpu").visible == ["1"]
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["tiny-mixer"]


def test_the_environment_sets_the_artifacts_directory_unless_the_option_does(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFINITY_ARTIFACTS", str(tmp_path / "of-environment"))
    assert main([str(checkpoints["mixer"]), "--target", "cpu"]) == 0
    assert main([str(checkpoints["mixer"]), "--target", "cpu", "--artifacts", str(tmp_path / "of-command")]) == 0
    for place in ("of-environment", "of-command"):
        assert (tmp_path / place / "tiny-mixer/1/manifest.json").is_file()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("bert-mini", "bert-mini"),
        ("someone/thing.v2@v1", "thing.v2"),
        ("someone/thing@refs/pr/1", "thing"),
        ("./my-checkpoint/", "my-checkpoint"),
        ("out/shakespeare/ckpt.pt", "shakespeare"),
        ("out/gpt2.pt", "gpt2"),
    ],
)
def test_make_serves_the_model_under_the_name_that_the_export_would_give_it(model: str, name: str) -> None:
    command = ["make", "--dry-run", "serve", f"MODEL={model}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f'python -m export "{model}" --name "{name}" --artifacts artifacts\n' in done.stdout
    assert f'--models "{name}"' in done.stdout


def test_make_exports_for_the_targets_of_the_user() -> None:
    command = ["make", "--dry-run", "serve", "MODEL=./mine", "TARGET=cpu=fp32,cpu=int8-dynamic"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert '--name "mine" --artifacts artifacts --target "cpu=fp32,cpu=int8-dynamic"\n' in done.stdout


def test_an_interrupted_command_lists_the_finished_exports(
    export, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = lookup.resolve

    def interrupted(location: str, tokenizer: str | None) -> lookup.Source:
        if location == "bert-mini":
            raise KeyboardInterrupt
        return resolve(location, tokenizer)

    monkeypatch.setattr(lookup, "resolve", interrupted)
    outcome = export(checkpoints["mixer"], "bert-mini", "--target", "cpu")
    expected = f"error: interrupted, nothing was written of bert-mini; finished before: {checkpoints['mixer']}\n"
    assert (outcome.status, outcome.visible, outcome.complained) == (1, ["1"], expected)


def test_a_terminal_shows_a_bar_and_a_log_does_not() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        progress = Progress(terminal, clock=lambda: 0.0)
        with progress.step("run PyTorch"):
            assert list(progress.each([1, 2, 3])) == [1, 2, 3]
        shown = b""
        while b"0.0 s" not in shown:  # the step's last words
            shown += screen.read(4096)
    assert b"0%" in shown
    assert b"0/3" in shown

    log = io.StringIO()
    progress = Progress(log, clock=lambda: 0.0)
    with progress.step("run PyTorch"):
        list(progress.each([1, 2, 3]))
    assert "%" not in log.getvalue()
