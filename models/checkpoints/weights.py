"""Published tensors into a model, and a model's tensors as they are published. Both read the same table.

Everything that is wrong with a set of tensors is said at once, name by name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.bert import Bert
from models.checkpoints.configs import configuration, own_family
from models.checkpoints.errors import CheckpointError, Json
from models.checkpoints.files import read
from models.checkpoints.layout import Layout, Row
from models.checkpoints.resize import resized
from models.checkpoints.tables import layout
from models.config import BertConfig, GptConfig, MixerConfig, StackConfig, VectorLayer, VitConfig
from models.gpt import Gpt
from models.mixer import Mixer
from models.vit import Vit

MODELS: dict[type[StackConfig], type[nn.Module]] = {
    BertConfig: Bert,
    GptConfig: Gpt,
    VitConfig: Vit,
    MixerConfig: Mixer,
}


def load(
    source: str | Path | tuple[Json, Mapping[str, Tensor]],
    *,
    pooling: str | Sequence[str] | None = None,
    layers: Sequence[VectorLayer] = (),
    image_size: int | None = None,
) -> nn.Module:
    """The model in a directory or a file (see `read`), or given as (config, tensors): in fp32, ready to be asked.

    `pooling` and `layers` are for encoders of texts: see `configuration`. `image_size`, in pixels, is for a ViT that
    is to look at images of another size than it was trained on.
    """
    published, tensors = read(source) if isinstance(source, str | Path) else source
    family, config = configuration(published, pooling=pooling, layers=layers)
    model, names = unfilled(config), layout(family, config)
    tensors = matched(model, names, tensors)
    model.to_empty(device="cpu")
    fill(model, names, tensors)
    if image_size is not None:
        model = resized(model, image_size)
    return model.eval()


def unfilled(config: StackConfig) -> nn.Module:
    """The model without memory for its weights: what they are called and their shapes are known before one is read."""
    try:
        with torch.device("meta"):
            return MODELS[type(config)](config)
    except ValueError as error:  # sizes that do not go together
        raise CheckpointError(f"config.json: {error}") from error


def published(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by the names and in the shapes in which they are published, tied ones once."""
    names = layout(own_family(model.config), model.config)
    return {names.full(name): tensor for name, tensor in plain(model, names).items()}


def plain(model: nn.Module, names: Layout) -> dict[str, Tensor]:
    """The same by the names of the table, without their prefix."""
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    rows = numbered_rows(names, model.config)
    assert ours.keys() == {name for row in rows for name in row.ours}, "the table misses a parameter: this is a bug"
    return {
        row.published: row.transform.to_published(tuple(ours[name] for name in row.ours), model.config).contiguous()
        for row in rows
    }


def numbered_rows(names: Layout, config: StackConfig) -> list[Row]:
    return [numbered for row in names.rows for numbered in row.numbered(config.depth)]


def fill(model: nn.Module, names: Layout, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, by the names of the table, into the parameters they belong to."""
    for row in numbered_rows(names, model.config):
        for name, tensor in zip(row.ours, row.transform.to_ours(tensors[row.published], model.config), strict=True):
            model.get_parameter(name).data.copy_(tensor)


def matched(model: nn.Module, names: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file by the names of the table, if they are exactly those that `model` needs."""
    expected = plain(model, names)
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
