"""Weights as they come: whole or in shards, as safetensors or pickled, in half precision; and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForMaskedLM, GPT2LMHeadModel

from models import Bert, Gpt
from models.checkpoints import CheckpointError, load, published, published_config, save
from models.config import BERT_PRESETS, GPT_PRESETS

MASKED, GPT = BERT_PRESETS["tiny"], GPT_PRESETS["tiny"]


@pytest.fixture
def whole(randomised: Callable[[nn.Module], nn.Module], tmp_path: Path) -> Path:
    """BERT in one safetensors file."""
    model = randomised(Bert(MASKED))
    save(tmp_path / "whole", published_config(model), published(model))
    return tmp_path / "whole"


@pytest.fixture
def tensors(whole: Path) -> dict[str, Tensor]:
    return load_file(whole / "model.safetensors")


def beside(whole: Path, name: str) -> Path:
    """Another directory with the same configuration and no weights."""
    directory = whole.with_name(name)
    directory.mkdir()
    shutil.copy(whole / "config.json", directory)
    return directory


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


@pytest.mark.parametrize("size", ["10GB", "40KB"])
def test_shards_of_transformers_are_read(size: str, whole: Path) -> None:
    """Below the size of a shard it is one file."""
    BertForMaskedLM.from_pretrained(whole).save_pretrained(whole.with_name("shards"), max_shard_size=size)
    assert (whole.with_name("shards") / "model.safetensors.index.json").exists() == (size == "40KB")
    assert_same(load(whole.with_name("shards")), load(whole))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_of_tensors_is_read(legacy: bool, whole: Path, tensors: dict[str, Tensor]) -> None:
    """Before PyTorch 1.6 it was not a zip file."""
    directory = beside(whole, "pickled")
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert_same(load(directory), load(whole))


def test_pickles_in_shards_are_read(whole: Path, tensors: dict[str, Tensor]) -> None:
    directory = beside(whole, "pickled")
    names = sorted(tensors)
    for n, part in enumerate((names[::2], names[1::2]), 1):
        torch.save({name: tensors[name] for name in part}, directory / f"pytorch_model-0000{n}-of-00002.bin")
    places = {name: f"pytorch_model-0000{1 + n % 2}-of-00002.bin" for n, name in enumerate(names)}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(load(directory), load(whole))


def test_safetensors_are_preferred_to_pickles(whole: Path) -> None:
    (whole / "pytorch_model.bin").write_bytes(b"never looked at")
    assert isinstance(load(whole), Bert)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_other_precisions_become_single(dtype: torch.dtype, name: str, whole: Path, tensors: dict[str, Tensor]) -> None:
    directory = beside(whole, "halved")
    halved = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(halved, directory / name) if name.endswith("safetensors") else torch.save(halved, directory / name)
    for name, tensor in published(load(directory)).items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, halved[name].float())


@pytest.mark.parametrize("reference", [BertForMaskedLM, GPT2LMHeadModel])
def test_a_pickle_of_all_that_transformers_knows_is_read(
    reference: type, randomised: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    """Its state has tied weights under both of their names, in one storage."""
    ours = randomised(Bert(MASKED) if reference is BertForMaskedLM else Gpt(GPT))
    save(tmp_path / "a", {**published_config(ours), "bos_token_id": 0, "eos_token_id": 0}, published(ours))
    directory = beside(tmp_path / "a", "b")
    torch.save(reference.from_pretrained(tmp_path / "a").state_dict(), directory / "pytorch_model.bin")
    assert_same(load(directory), ours)


class Malicious:
    """What pickle would run when it is read."""

    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemExit('the code of a checkpoint was run')",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_the_code_is_not_run(
    legacy: bool, whole: Path, tensors: dict[str, Tensor]
) -> None:
    directory = beside(whole, "malicious")
    path = directory / "pytorch_model.bin"
    torch.save({**tensors, "extra": Malicious()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"found a pickle that imports \S*exec, .* nothing of it was loaded"):
        load(directory)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"model": {}, "epoch": 3},
            r"holds other things than tensors \(model, epoch\): expected tensors by their names",
        ),
        ([1, 2], "holds a list: expected tensors by their names"),
    ],
)
def test_a_pickle_of_something_else_is_refused(saved: object, message: str, whole: Path) -> None:
    directory = beside(whole, "other")
    torch.save(saved, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        load(directory)


@pytest.mark.parametrize("content", [b"", b"not tensors", b"PK\x03\x04 half a file"])
def test_a_broken_pickle_is_refused(content: bytes, whole: Path) -> None:
    directory = beside(whole, "broken")
    (directory / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        load(directory)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no weight_map"),
        ({"weight_map": {"a": "../whole/model.safetensors"}}, r"names \.\./whole/model.safetensors: found"),
        ({"weight_map": {"a": "model-1.safetensors"}}, "names model-1.safetensors: found config.json"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(index: dict, message: str, whole: Path) -> None:
    directory = beside(whole, "index")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load(directory)


def test_a_tensor_that_is_not_in_its_shard_is_named(whole: Path, tensors: dict[str, Tensor]) -> None:
    directory = beside(whole, "index")
    save_file(tensors, directory / "model-1.safetensors")
    places = dict.fromkeys([*tensors, "bert.more"], "model-1.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="names bert.more: found no such tensors in its files"):
        load(directory)
