"""From published tensors to a model, and back. Both directions read the same table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.bert import Bert
from models.checkpoints.bounds import check_sizes
from models.checkpoints.configs import configuration, own_family
from models.checkpoints.errors import CheckpointError, Json
from models.checkpoints.files import read
from models.checkpoints.layout import Layout, Row
from models.checkpoints.matching import are_untied, match_tensors, missing_own_bias, with_own_bias
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


@dataclass(frozen=True)
class Loaded:
    """A model, the tensors of its file that were ignored by `ignore_unused`, and those that are zero without a file."""

    model: nn.Module
    ignored: list[str]
    zeros: list[str]


def load(source: str | Path | tuple[Json, Mapping[str, Tensor]], **options: Any) -> nn.Module:
    """The model in a directory or a file (see `read`), or given as (config, tensors); options are those of `fitted`."""
    published, tensors = read(source) if isinstance(source, str | Path) else source
    return fitted(published, tensors, **options).model


def fitted(
    published: Json,
    tensors: Mapping[str, Tensor],
    *,
    pooling: str | Sequence[str] | None = None,
    vector_layers: Sequence[VectorLayer] = (),
    image_size: int | None = None,
    file: str = "the weights",
    ignore_unused: bool = False,
) -> Loaded:
    """The model that a configuration describes, with its tensors, in fp32 and in evaluation mode.

    `pooling` and `vector_layers` are for encoders of texts: see `configuration`. `image_size`, in pixels, is for a ViT
    with images of another size than in training. `file` is the name of the tensors' file in errors; `ignore_unused`
    allows tensors that the model does not use. CheckpointError if anything does not fit.
    """
    family, config = configuration(published, pooling=pooling, vector_layers=vector_layers)
    check_sizes(family, config, tensors, file=file)
    names = layout(family, config)
    if getattr(config, "tied_head", False):
        tensors = with_own_bias(names, tensors)
        if are_untied(names, tensors):  # transformers does not tie them either
            config = replace(config, tied_head=False)
            names = layout(family, config)
    zeros = []
    if isinstance(config, BertConfig) and (bias := missing_own_bias(names, tensors)):
        tensors, zeros = {**tensors, bias: torch.zeros(config.vocabulary)}, [bias]
    model = unfilled(config)
    matched = match_tensors(
        type(model).__name__, names, plain(model, names), tensors, file=file, ignore_unused=ignore_unused
    )
    model.to_empty(device="cpu")
    fill(model, names, matched.tensors)
    if image_size is not None:
        model = resized(model, image_size)
    return Loaded(model.eval(), matched.ignored, zeros)


def unfilled(config: StackConfig) -> nn.Module:
    """The model on the meta device: names and shapes of its parameters are known before any tensor is read."""
    try:
        with torch.device("meta"):
            return MODELS[type(config)](config)
    except (ValueError, RuntimeError) as error:  # sizes that do not go together, or that no tensor can have
        raise CheckpointError(f"config.json: {error}") from error


def published(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors by their published names and in their published shapes, tied tensors once."""
    names = layout(own_family(model.config), model.config)
    return {names.full(name): tensor for name, tensor in plain(model, names).items()}


def plain(model: nn.Module, names: Layout) -> dict[str, Tensor]:
    """The model's tensors by the names of the table, without the prefix."""
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
    """Copy tensors, by the names of the table, into the parameters."""
    for row in numbered_rows(names, model.config):
        for name, tensor in zip(row.ours, row.transform.to_ours(tensors[row.published], model.config), strict=True):
            model.get_parameter(name).data.copy_(tensor)
