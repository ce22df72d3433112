"""The optimisers: Muon for the matrices inside the blocks, AdamW for the rest.

Muon orthogonalises the update of each matrix, which halves the number of steps that a small model needs.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The maximum learning rates. `weight_decay` is for the matrices."""

    matrices: float = 4e-3
    others: float = 3e-3
    weight_decay: float = 0.1


def create(model: nn.Module, rates: Rates) -> list[Optimizer]:
    """The optimiser of the matrices in the blocks, and that of embeddings, biases and norms."""
    named = dict(model.named_parameters())
    matrices = [parameter for name, parameter in named.items() if "blocks" in name and parameter.dim() == 2]
    others = [parameter for name, parameter in named.items() if not ("blocks" in name and parameter.dim() == 2)]
    return [
        torch.optim.Muon(
            matrices,
            lr=rates.matrices,
            weight_decay=rates.weight_decay,
            momentum=0.95,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=rates.others, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def set_rates(both: Sequence[Optimizer], rates: Rates, share: float) -> None:
    """Set both learning rates to a share of their maximum."""
    for optimiser, rate in zip(both, (rates.matrices, rates.others), strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate * share


def step(both: Sequence[Optimizer], model: nn.Module) -> None:
    """Clip the gradients, make a step, and reset them."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in both:
        optimiser.step()
        optimiser.zero_grad()
