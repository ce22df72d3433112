"""The modules after the pooling of sentence-transformers, as layers of `models`, with their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from export.errors import ExportError
from export.sources.modules import CONFIG, WEIGHTED, Module, weights_of
from models.checkpoints import CheckpointError, tensors_in
from models.config import DenseLayer, FirstValuesLayer, NormaliseLayer, NormLayer, VectorLayer

VECTOR = "sentence_embedding"  # the library's name of a text's vector
# Its names of activations, which are classes of PyTorch without arguments, and the names in `models`.
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
ACTIVATIONS |= {f"torch.nn.{name.rpartition('.')[2]}": ours for name, ours in ACTIVATIONS.items()}
# Keys of a module's settings that are read here; modules that read or write other features are refused.
KEYS = {
    "Dense": ("in_features", "out_features", "bias", "activation_function", "use_residual"),
    "LayerNorm": ("dimension",),
    "Normalize": (),
    "Dropout": ("dropout",),
}
FEATURES = ("module_input_name", "module_output_name")


@dataclass(frozen=True)
class VectorLayers:
    """`layers` on a text's vector, and their tensors, by the names of `models`.

    `normalise`: the vector is scaled to length 1 at the end, which the server does.
    """

    layers: tuple[VectorLayer, ...] = ()
    tensors: dict[str, Tensor] = field(default_factory=dict)
    normalise: bool = False


def read(directory: Path, modules: Sequence[Module], *, width: int, cut_to: int | None = None) -> VectorLayers:
    """The modules after the pooling, whose vector is `width` wide; the result is truncated to `cut_to` values.

    ExportError names the file, the key, what was found and what is supported.
    """
    layers: list[VectorLayer] = []
    tensors: dict[str, Tensor] = {}
    for module in modules:
        config = checked(directory, module)
        layer = LAYERS[module.kind](module.file(CONFIG), config, width)
        if layer is None:
            continue
        if module.kind in WEIGHTED:
            tensors |= {
                f"vector_layers.{len(layers)}.{name}": tensor for name, tensor in weights(directory, module).items()
            }
        layers.append(layer)
        width = getattr(layer, "width", width)
    if cut_to is not None and cut_to < width:
        return VectorLayers((*layers, FirstValuesLayer(cut_to)), tensors)
    normalise = bool(layers) and isinstance(layers[-1], NormaliseLayer)
    return VectorLayers(tuple(layers[:-1] if normalise else layers), tensors, normalise)


def checked(directory: Path, module: Module) -> dict[str, Any]:
    """The settings of a module. ExportError if it has unknown settings, or works on another feature than the vector."""
    name = module.file(CONFIG)
    if module.kind not in LAYERS:
        raise ExportError(f"modules.json: found a second {module.kind}, expected {', '.join(LAYERS)} after the pooling")
    config = {} if module.folder == "" and module.kind not in WEIGHTED else module.config(directory)
    for key in FEATURES:
        found = config.pop(key, None)
        if found not in (None, VECTOR):
            raise ExportError(f"{name}: {key} is {found!r}, expected {VECTOR!r}")
    if unknown := sorted(config.keys() - set(KEYS[module.kind])):
        known = ", ".join((*KEYS[module.kind], *FEATURES))
        raise ExportError(f"{name}: found {', '.join(unknown)}, expected some of {known}")
    return config


def dense(name: str, config: dict[str, Any], width: int) -> DenseLayer:
    """A dense layer; the library's default activation is a tanh."""
    check_width(name, "in_features", config, width)
    if not isinstance(config.get("out_features"), int) or config["out_features"] < 1:
        raise ExportError(f"{name}: out_features is {config.get('out_features')!r}, expected a width")
    found = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if found not in ACTIVATIONS:
        known = ", ".join(name for name in ACTIVATIONS if ".modules." in name)
        raise ExportError(f"{name}: activation_function is {found!r}, expected one of {known}")
    return DenseLayer(
        width=config["out_features"],
        activation=ACTIVATIONS[found],
        bias=bool(config.get("bias", True)),
        residual=bool(config.get("use_residual", False)),
    )


def layer_norm(name: str, config: dict[str, Any], width: int) -> NormLayer:
    """A layer norm."""
    check_width(name, "dimension", config, width)
    return NormLayer()


def check_width(name: str, key: str, config: dict[str, Any], width: int) -> None:
    """ExportError if the input width of a module is not the output width of the one before it."""
    if config.get(key) != width:
        raise ExportError(f"{name}: {key} is {config.get(key)!r}, expected {width}, the width of the vector before it")


def normalise(name: str, config: dict[str, Any], width: int) -> NormaliseLayer:
    """A vector of length 1."""
    return NormaliseLayer()


def nothing(name: str, config: dict[str, Any], width: int) -> None:
    """A module that has an effect in training only."""


LAYERS: dict[str, Callable[[str, dict[str, Any], int], VectorLayer | None]] = {
    "Dense": dense,
    "LayerNorm": layer_norm,
    "Normalize": normalise,
    "Dropout": nothing,
}


def weights(directory: Path, module: Module) -> dict[str, Tensor]:
    """The tensors of a module, by the library's names, which are ours."""
    try:
        return tensors_in(weights_of(directory, module))
    except CheckpointError as error:
        raise ExportError(str(error)) from error
