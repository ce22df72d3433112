"""Published tensors into a model, and a model's tensors as they are published. Both read the same table.

Everything that is wrong with a set of tensors is said at once, name by name.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.bert import Bert
from models.checkpoints.configs import Json, configuration
from models.checkpoints.errors import CheckpointError
from models.checkpoints.tables import Layout, Row, layout
from models.config import StackConfig
from models.gpt import Gpt
from models.mixer import Mixer
from models.vit import Vit

FAMILIES: dict[str, type[nn.Module]] = {"bert": Bert, "gpt": Gpt, "vit": Vit, "mixer": Mixer}
WEIGHTS = "model.safetensors"


def load(
    source: str | Path | tuple[Json, Mapping[str, Tensor]], *, pooling: str | None = None, normalise: bool = False
) -> nn.Module:
    """The model in a directory of the Hugging Face layout, or given as (config, tensors): in fp32, ready to be asked.

    `pooling` and `normalise` are for BERT encoders: see `configuration`.
    """
    config, tensors = read(source) if isinstance(source, str | Path) else source
    model = unfilled(*configuration(config, pooling=pooling, normalise=normalise))
    tensors = matched(model, tensors)
    model.to_empty(device="cpu")
    fill(model, tensors)
    return model.eval()


def unfilled(family: str, config: StackConfig) -> nn.Module:
    """The model without memory for its weights: what they are called and their shapes are known before one is read."""
    try:
        with torch.device("meta"):
            return FAMILIES[family](config)
    except ValueError as error:  # sizes that do not go together
        raise CheckpointError(f"config.json: {error}") from error


def read(directory: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a directory in the Hugging Face layout holds: its configuration and its tensors, as they are published."""
    directory = Path(directory)
    for name in ("config.json", WEIGHTS):
        if not (directory / name).is_file():
            found = ", ".join(sorted(path.name for path in directory.glob("*"))) or "nothing"
            raise CheckpointError(f"{directory} has no {name}: found {found}")
    try:
        config = json.loads((directory / "config.json").read_text("utf-8"))
        tensors = load_file(directory / WEIGHTS)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory / 'config.json'} is not JSON: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{directory / WEIGHTS} is not a safetensors file: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{directory / 'config.json'} holds a {type(config).__name__}: expected an object")
    return config, tensors


def save(directory: str | Path, config: Json, tensors: Mapping[str, Tensor]) -> None:
    """Write what `read` reads."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    save_file(dict(tensors), directory / WEIGHTS, metadata={"format": "pt"})


def published(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by the names and in the shapes in which they are published, tied ones once."""
    names = layout(model.config)
    return {names.full(name): tensor for name, tensor in plain(model).items()}


def plain(model: nn.Module) -> dict[str, Tensor]:
    """The same by the names of the table, without their prefix."""
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    rows = numbered_rows(model.config)
    assert ours.keys() == {name for row in rows for name in row.ours}, "the table misses a parameter: this is a bug"
    return {
        row.published: row.transform.to_published(tuple(ours[name] for name in row.ours), model.config).contiguous()
        for row in rows
    }


def numbered_rows(config: StackConfig) -> list[Row]:
    return [numbered for row in layout(config).rows for numbered in row.numbered(config.depth)]


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, by the names of the table, into the parameters they belong to."""
    for row in numbered_rows(model.config):
        for name, tensor in zip(row.ours, row.transform.to_ours(tensors[row.published], model.config), strict=True):
            model.get_parameter(name).data.copy_(tensor)


def matched(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file by the names of the table, if they are exactly those that `model` needs."""
    names, expected = layout(model.config), plain(model)
    found, problems = spelled(names, tensors, expected.keys())
    problems += untie(names, found, expected.keys())
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            problems.append(f"missing {names.full(name)}: expected {shape(expected[name])}")
        elif name not in expected:
            problems.append(f"left over {found[name][0]}: found {shape(found[name][1])}, expected no such tensor")
        elif found[name][1].shape != expected[name].shape:
            spelling, tensor = found[name]
            problems.append(f"misshapen {spelling}: found {shape(tensor)}, expected {shape(expected[name])}")
        elif not found[name][1].is_floating_point():
            spelling, tensor = found[name]
            problems.append(f"not a weight {spelling}: found {tensor.dtype}, expected floating point")
    if problems:
        lines = "\n  ".join(problems)
        raise CheckpointError(f"{len(problems)} tensors are not those of {type(model).__name__}:\n  {lines}")
    return {name: tensor for name, (_, tensor) in found.items()}


def spelled(
    names: Layout, tensors: Mapping[str, Tensor], expected: Any
) -> tuple[dict[str, tuple[str, Tensor]], list[str]]:
    """Each tensor by its name in the table, with its spelling in the file; what is known to be unused is left out."""
    found: dict[str, tuple[str, Tensor]] = {}
    problems = []
    for spelling, tensor in tensors.items():
        name = names.plain(spelling)
        if name not in expected and names.is_unused(name):
            continue
        if name in found:
            problems.append(f"twice {spelling}: found {found[name][0]} too, expected one of them")
        found[name] = spelling, tensor
    return found, problems


def untie(names: Layout, found: dict[str, tuple[str, Tensor]], expected: Any) -> list[str]:
    """Drop the copies of tied tensors, which must be equal to their originals or stand in for them."""
    problems = []
    for copy, original in names.copies:
        if copy not in found or original not in expected:
            continue
        spelling, tensor = found.pop(copy)
        if original not in found:
            found[original] = spelling, tensor
        elif not torch.equal(tensor.float(), found[original][1].float()):
            problems.append(f"untied {spelling}: found other values than in {found[original][0]}, expected the same")
    return problems


def shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
