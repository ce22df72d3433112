"""Hub ids, from a hub on this machine: what is downloaded, once, pinned, and what every refusal says."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers
from sentence_transformers.sentence_transformer.modules import Dense

from tests.hub import Hub, Repository, serving
from tests.serving import ROOT

MIXER = "timm/mixer_b16_224.goog_in21k_ft_in1k"
DOWNLOAD = "import sys; from export.sources import hub; print(hub.model(sys.argv[1]))"
NOWHERE = "http://127.0.0.1:1"  # no server listens there
NOISE = ("README.md", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "rust_model.ot")


def crowded(directory: Path, place: Path) -> Path:
    """A copy as the hub has it, with what other frameworks need."""
    shutil.copytree(directory, place)
    (place / "onnx").mkdir()
    for name in NOISE:
        (place / name).write_text("not needed")
    return place


def in_folders(directory: Path, embedder: Path) -> Path:
    """A model of sentence-transformers whose encoder lies in a folder of its own, with a dense layer after it."""
    shutil.copytree(embedder, directory / "0_Transformer", ignore=shutil.ignore_patterns("modules.json", "*_Pooling"))
    shutil.copytree(embedder / "1_Pooling", directory / "1_Pooling")
    (directory / "2_Dense").mkdir()
    Dense(64, 16).save(str(directory / "2_Dense"))
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense"}
    types = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (directory / "modules.json").write_text(json.dumps(types))
    return directory


@pytest.fixture(scope="module")
def hub(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("hub")
    both = crowded(checkpoints["gpt"], root / "both")
    (both / "pytorch_model.bin").write_text("never looked at")
    untold = crowded(checkpoints["bert"], root / "untold")
    (untold / "tokenizer.json").unlink()
    strange = root / "strange"
    strange.mkdir()
    (strange / "config.json").write_text(json.dumps({"architectures": ["T5ForConditionalGeneration"]}))
    (strange / "model.safetensors").write_bytes(b"gigabytes")
    other = root / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_224"}))
    (other / "model.safetensors").write_bytes(b"gigabytes")
    bare = root / "bare"
    bare.mkdir()
    shutil.copy(checkpoints["bert"] / "config.json", bare)
    (bare / "tf_model.h5").write_text("other frameworks' weights")
    shards, pickled = crowded(checkpoints["bert"], root / "shards"), crowded(checkpoints["bert"], root / "pickled")
    model = transformers.BertForMaskedLM.from_pretrained(checkpoints["bert"])
    (shards / "model.safetensors").unlink()
    model.save_pretrained(shards, max_shard_size="200KB")
    (shards / "pytorch_model.bin").write_text("never looked at")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    repositories = {
        "someone/shards": shards,
        "someone/layers": crowded(in_folders(root / "made", checkpoints["embedder"]), root / "layers"),
        "someone/pickled": pickled,
        MIXER: crowded(checkpoints["mixer"], root / "mixer"),
        "someone/both": both,
        "someone/gated": Repository(checkpoints["vit"], token="secret"),
        "someone/expired": Repository(checkpoints["vit"], status=401),
        "someone/down": Repository(checkpoints["vit"], status=503),
        "someone/untold": untold,
        "someone/strange": strange,
        "timm/other": other,
        "someone/bare": bare,
    }
    with serving(repositories) as hub:
        yield hub


Outcome = subprocess.CompletedProcess
Export = Callable[..., Outcome]


@pytest.fixture
def python(hub: Hub, tmp_path: Path) -> Export:
    """A process of its own, for the hub's library reads its environment once; its cache is this test's."""

    def run(*arguments: str, **environment: str) -> Outcome:
        hub.fetched.clear()
        hub.asked.clear()
        hub.tokens.clear()
        quiet = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*", "no_proxy": "*"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**quiet, **ours, **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


@pytest.fixture
def export(python: Export, tmp_path: Path) -> Export:
    """The command itself."""
    rest = ("--artifacts", str(tmp_path / "artifacts"), "--target", "cpu")
    return lambda *arguments, **environment: python("-m", "export", *arguments, *rest, **environment)


def test_a_model_is_downloaded_once_and_found_again_without_a_network(hub: Hub, export: Export, tmp_path: Path) -> None:
    commit = hub.repositories[MIXER].commit
    first = export(MIXER)
    assert first.returncode == 0, first.stderr
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]
    assert f"is commit {commit}" in first.stdout
    source = json.loads((tmp_path / "artifacts" / MIXER.split("/")[1] / "1/manifest.json").read_text())["source"]
    assert (source["location"], source["revision"]) == (MIXER, commit)

    for environment in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        again = export(MIXER, **environment)
        assert (again.returncode, hub.fetched) == (0, []), again.stderr
        assert "up to date" in again.stdout
        assert (hub.asked == []) == bool(environment)


def test_safetensors_are_preferred(hub: Hub, python: Export) -> None:
    done = python("-c", DOWNLOAD, "someone/both@v1")
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.fetched
    assert not {"pytorch_model.bin", *NOISE} & set(hub.fetched)


@pytest.mark.parametrize("name", ["shards", "pickled"])
def test_all_weights_of_the_existing_format_are_downloaded(name: str, hub: Hub, python: Export) -> None:
    command = ("-c", DOWNLOAD, f"someone/{name}")
    first = python(*command)
    directory = Path(first.stdout.strip())
    wanted = {"shards": "model-*-of-*.safetensors", "pickled": "pytorch_model.bin"}[name]
    weights = {path.name for path in hub.repositories[f"someone/{name}"].directory.glob(wanted)}
    assert weights
    assert weights <= set(hub.fetched)
    assert {"never", *NOISE}.isdisjoint(hub.fetched)
    assert ("pytorch_model.bin" in hub.fetched) == (name == "pickled")

    lost = directory / sorted(weights)[0]  # as if the first download had been interrupted
    lost.resolve().unlink()
    lost.unlink()
    assert "not whole, and the hub cannot be reached" in python(*command, HF_HUB_OFFLINE="1").stderr
    assert python(*command).stdout == first.stdout
    assert hub.fetched == [lost.name]


def test_the_folders_of_modules_are_fetched_with_all_that_the_digest_covers(hub: Hub, python: Export) -> None:
    code = (
        "from export.sources import hub, layout; path = hub.model('someone/layers'); print(path, *layout.files(path))"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    directory, *files = map(Path, done.stdout.split())
    expected = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    encoder = ("config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json")
    expected += [f"0_Transformer/{name}" for name in (*encoder, "tokenizer_config.json")]
    assert sorted(hub.fetched) == sorted(expected)
    assert {path.relative_to(directory).as_posix() for path in files} == set(expected)
    assert python("-c", code, HF_HUB_OFFLINE="1").stdout == done.stdout

    lost = directory / "2_Dense/model.safetensors"
    lost.resolve().unlink()
    lost.unlink()
    assert "not whole, and the hub cannot be reached" in python("-c", code, HF_HUB_OFFLINE="1").stderr
    assert python("-c", code).stdout == done.stdout
    assert hub.fetched == ["2_Dense/model.safetensors"]


def test_the_token_of_the_environment_opens_a_gated_repository(hub: Hub, export: Export, python: Export) -> None:
    refused = export("someone/gated")
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        "error: someone/gated: it is gated: accept its licence on the hub, and set HF_TOKEN"
    )
    assert "(HF_TOKEN is not set)" in refused.stderr
    assert hub.fetched == []
    wrong = export("someone/gated", HF_TOKEN="wrong")
    assert "(HF_TOKEN is set, but has no access)" in wrong.stderr
    assert python("-c", DOWNLOAD, "someone/gated", HF_TOKEN="secret").returncode == 0
    assert "Bearer secret" in hub.tokens


@pytest.mark.parametrize(
    ("location", "environment", "said"),
    [
        ("someone/nothing", {}, "someone/nothing: the hub has no such repository, or HF_TOKEN gives no access to it"),
        (f"{MIXER}@v9", {}, "the hub has no revision 'v9' of it"),
        (
            MIXER,
            {"HF_HUB_OFFLINE": "1"},
            "it is not in the local cache, or not whole, and the hub cannot be reached (HF_",
        ),
        (
            MIXER,
            {"HF_ENDPOINT": NOWHERE},
            "not whole, and the hub cannot be reached ([Errno 111] Connection refused): found no such directory here",
        ),
        ("someone/expired", {"HF_TOKEN": "old"}, "the hub answers 401 (Client error '401 Unauthorized'"),
        ("someone/down", {}, "the hub answers 503 (Server error '503 Service Unavailable'"),
        ("runs/exp--1", {}, "runs/exp--1: found no such directory, and no hub id either ("),
        ("someone/untold", {}, "RoBERTa); --tokenizer names another directory, a file or a hub id"),
        ("someone/strange", {}, "T5ForConditionalGeneration: expected one of BertForMaskedLM, "),
        ("timm/other", {}, "architecture is 'vit_base_patch16_224': expected one of mixer_s32_224, "),
        ("someone/bare", {}, "found config.json, tf_model.h5, expected weights in one of model.safetensors, "),
    ],
)
def test_a_failed_download_is_one_line_of_error(
    location: str, environment: dict[str, str], said: str, export: Export, hub: Hub
) -> None:
    done = export(location, **environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    if location in ("someone/strange", "timm/other"):
        assert "model.safetensors" not in hub.fetched


def test_a_cache_that_cannot_be_written_is_named(export: Export, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    done = export(MIXER, HF_HOME=str(tmp_path / "file"))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'file'}")
    assert "Traceback" not in done.stderr


def test_a_tokenizer_may_come_from_another_repository(hub: Hub, export: Export) -> None:
    done = export("someone/untold", "--tokenizer", "someone/both")
    assert done.returncode == 1  # GPT-2's words do not fit BERT
    assert "tokenizer: found token ids up to" in done.stderr
    assert {"model.safetensors", "tokenizer.json"} <= set(hub.fetched)
