"""Refuses sizes that no model with the tensors of a file can have, before anything is built with them.

A typing error in `config.json` could otherwise take all memory, or hours: even a layer without weights is an object.
Sizes that are wrong by less are compared with the shape of each tensor afterwards, which gives a more exact message.
"""

from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.fields import FIELDS
from models.config import StackConfig

MODEST_LAYERS, MODEST_SIZE = 100, 1 << 20  # these take no time, and later errors are more exact
CLASSES = {"classes": "num_labels or id2label"}  # the keys of fields that are not in FIELDS
OTHER_KEYS = {"gpt": {"mlp_width": "n_inner"}}
MIXER = {
    "width": "embed_dim",
    "depth": "num_blocks",
    "token_mlp_width": "mlp_ratio",
    "mlp_width": "mlp_ratio",
    "image_size": "img_size",
    "patch_size": "patch_size",
    "channels": "in_chans",
    "classes": "num_classes",
}


def check_sizes(family: str, config: StackConfig, tensors: Mapping[str, Tensor], *, file: str) -> None:
    """CheckpointError for more layers than the file has tensors, or a size above the number of all their values."""
    values = sum(tensor.numel() for tensor in tensors.values())
    sizes = {field.name: getattr(config, field.name) for field in fields(config) if field.type is int}
    needed = sizes | {name: count for name, count in derived(sizes).items() if name in sizes}
    keys = MIXER if family == "mixer" else published_keys(family)
    for name, count in needed.items():
        if name == "depth":
            if count > max(len(tensors), MODEST_LAYERS):
                found = f"{len(tensors)} tensors in {file}, expected at least one for each layer"
                raise CheckpointError(f"config.json: {keys[name]} is {count}: found {found}")
        elif count > max(values, MODEST_SIZE):
            found = f"{values} values in all tensors of {file}, expected at least {count}"
            raise CheckpointError(f"config.json: {keys.get(name, name)} is {sizes[name]}: found {found}")


def derived(sizes: Mapping[str, int]) -> dict[str, int]:
    """The values that sizes in pixels need: an embedding of each pixel of a patch, and of each patch of an image."""
    if "patch_size" not in sizes:
        return {}
    patch = sizes["patch_size"]
    return {"patch_size": patch**2, "image_size": (sizes["image_size"] // patch) ** 2}


def published_keys(family: str) -> dict[str, str]:
    """The key in `config.json` of each field."""
    return {field: key for field, (key, _) in FIELDS[family].items()} | OTHER_KEYS.get(family, {}) | CLASSES
