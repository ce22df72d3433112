"""The files of a checkpoint: the configuration and the tensors, as they are published.

A directory in the Hugging Face layout has its tensors in one file or in several with an index, as safetensors or as
PyTorch pickles; nanoGPT has one file for everything. Pickles may contain tensors and plain values; anything that would
run code is refused. Tensors are memory-mapped if the format allows it.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoints.errors import CheckpointError, Json
from models.checkpoints.nanogpt import unpacked

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
# The first of these files that exists is read. (Many repositories have both formats.)
CANDIDATES = (WEIGHTS, f"{WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
INDEX = ".index.json"
NAMED = 8  # files or tensors that a message names


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a directory in the Hugging Face layout, or of nanoGPT's `ckpt.pt`."""
    path = Path(path)
    if path.is_file():
        return unpacked(path, unpickle(path))
    config, name = read_object(path, CONFIG), weights_file(path)
    return config, read_shards(path, name) if name.endswith(INDEX) else tensors_in(path / name)


def weights_file(path: str | Path) -> str:
    """The name of the file with the tensors, or of the index of several files."""
    path = Path(path)
    if path.is_file():
        return path.name
    name = next((name for name in CANDIDATES if (path / name).is_file()), None)
    if name is None:
        raise CheckpointError(
            f"{path} has no {WEIGHTS}: found {list_files(path)}, expected one of {', '.join(CANDIDATES)}"
        )
    return name


def list_files(directory: Path) -> str:
    return shorten(sorted(path.name for path in directory.glob("*"))) or "nothing"


def shorten(names: Sequence[str]) -> str:
    """The first of some names, and the number of the others."""
    others = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + others


def read_object(directory: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file."""
    if not (directory / name).is_file():
        raise CheckpointError(f"{directory} has no {name}: found {list_files(directory)}")
    try:
        found = json.loads((directory / name).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory / name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{directory / name} holds a {type(found).__name__}: expected an object")
    return found


def read_shards(directory: Path, name: str) -> dict[str, Tensor]:
    """The tensors of several files with an index."""
    files_by_tensor = read_object(directory, name).get("weight_map")
    if not isinstance(files_by_tensor, dict) or not all(isinstance(file, str) for file in files_by_tensor.values()):
        raise CheckpointError(f"{directory / name} has no weight_map: expected the file of each tensor by its name")
    tensors = {}
    for file in sorted(set(files_by_tensor.values())):
        if Path(file).name != file or not (directory / file).is_file():
            raise CheckpointError(
                f"{directory / name} names {file}: found {list_files(directory)}, expected it among them"
            )
        tensors |= tensors_in(directory / file)
    if missing := sorted(files_by_tensor.keys() - tensors.keys()):
        raise CheckpointError(f"{directory / name} names {shorten(missing)}: found no such tensors in its files")
    return tensors


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is not a safetensors file: {error}") from error
    found = unpickle(path)
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise CheckpointError(f"{path} holds {describe(found)}: expected tensors by their names and nothing else")
    return dict(found)


def unpickle(path: Path) -> Any:
    """The contents of a PyTorch file, which may be tensors and plain values only."""
    try:
        # Only the format of PyTorch 1.6 and later, a zip file, can be memory-mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        found = f"a pickle that imports {wanted[1]}" if wanted else "a file that is not a pickle of tensors"
        raise CheckpointError(
            f"{path}: found {found}, expected tensors and plain values. "
            "A pickle can run any code, so nothing of it was loaded; save the tensors as safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise CheckpointError(f"{path} cannot be read by PyTorch: {reason}") from error


def describe(found: Any) -> str:
    if isinstance(found, Mapping):
        others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
        return f"other things than tensors ({', '.join(others[:5])})"
    return f"a {type(found).__name__}"


def save(directory: str | Path, config: Json, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint that `read` reads."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(dict(tensors), directory / WEIGHTS, metadata={"format": "pt"})
