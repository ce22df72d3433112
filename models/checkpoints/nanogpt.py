"""nanoGPT's `ckpt.pt`, which has the model, its sizes, and the state of the training.

Source: github.com/karpathy/nanoGPT, `train.py` (what is saved) and `model.py` (names and shapes).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.layout import unwrapped

ARCHITECTURE = "nanoGPT"  # the files have no architecture
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")


def unpacked(path: Path, saved: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and tensors of a saved file; layers without a bias get one of zeros."""
    if not isinstance(saved, Mapping) or not {"model", "model_args"} <= saved.keys():
        found = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else f"a {type(saved).__name__}"
        raise CheckpointError(f"{path}: found {found[:200]}, expected model and model_args, as nanoGPT saves them")
    arguments, tensors = saved["model_args"], saved["model"]
    if missing := [name for name in SIZES if not isinstance(arguments.get(name), int)]:
        raise CheckpointError(f"{path}: found no {', '.join(missing)} in model_args, expected whole numbers")
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{path}: found other things than tensors in model, expected tensors by their names")
    tensors = {unwrapped(name): tensor for name, tensor in tensors.items()}
    if arguments.get("bias") is False:
        tensors = with_biases(tensors)
    return {"architectures": [ARCHITECTURE], **arguments}, tensors


def activation(config: Mapping[str, Any]) -> tuple[str, str]:
    """The GELU that a model was probably trained with, and why: nanoGPT changed it in June 2023, and no file has it."""
    if "bias" in config:
        return "gelu", "the exact GELU, as nanoGPT's since June 2023 (those of the four months before had GELU by tanh)"
    return "gelu_new", "GELU by tanh, because a file without the key `bias` is older than February 2023"


def with_biases(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add zero biases to layers without a bias. (They cost nothing: the runtime's fused nodes add a bias anyway.)"""
    layers = [name for name in tensors if ".h." in name or ".ln_f" in name]
    zeros = {
        name.removesuffix("weight") + "bias": torch.zeros(len(tensors[name]))
        for name in layers
        if name.endswith(".weight")
    }
    return zeros | dict(tensors)
