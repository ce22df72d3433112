"""A ViT for images of another size than in training: its position embedding is interpolated.

Source: Dosovitskiy et al., 2020, section 3.2; as `interpolate_pos_encoding` of transformers computes it.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoints.errors import CheckpointError
from models.vit import Vit


def resized(model: nn.Module, image_size: int) -> Vit:
    """The same weights for images of `image_size` pixels a side. CheckpointError if `model` cannot be resized."""
    if not isinstance(model, Vit):
        reason = "only ViT and DeiT have positions to interpolate, a Mixer's weights belong to them, a text has no size"
        raise CheckpointError(f"image_size is {image_size}, for {type(model).__name__}: {reason}")
    try:
        with torch.device("meta"):
            larger = Vit(replace(model.config, image_size=image_size))
    except ValueError as error:
        raise CheckpointError(f"image_size is {image_size}: {error}") from error
    weights = model.state_dict()
    weights["class_tokens.positions"] = interpolated(
        weights["class_tokens.positions"], model.config.class_tokens, model.embed.per_side, larger.embed.per_side
    )
    larger.load_state_dict(weights, assign=True)
    return larger


def interpolated(positions: Tensor, class_tokens: int, per_side: int, wanted: int) -> Tensor:
    """Position embeddings (1, tokens + i·i, d) for `wanted` patches a side; those of the class tokens are kept."""
    patches = positions[:, class_tokens:].unflatten(1, (per_side, per_side)).permute(0, 3, 1, 2)  # (1, d, i, i)
    patches = functional.interpolate(patches, size=(wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :class_tokens], patches.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
