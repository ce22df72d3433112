"""Who may look at whom: additive masks that broadcast to (b, h, t, s), 0 where a look is allowed, else minus infinity.

This is the whole difference between the blocks of BERT (`padding`), GPT (`causal`) and ViT (no mask at all).
"""

import torch
from torch import Tensor


def causal(positions: int, device: torch.device | None = None) -> Tensor:
    """Each token sees itself and what came before it: this is what makes a stack of blocks a generator of text."""
    allowed = torch.ones(positions, positions, dtype=torch.bool, device=device).tril()
    return additive(allowed)  # (t, s)


def padding(lengths: Tensor, columns: Tensor) -> Tensor:
    """No token looks at padding. `lengths` (b) counts the real tokens of each row; what follows them is padding."""
    return additive(real(lengths, columns)[:, None, None, :])  # (b, 1, 1, s)


def real(lengths: Tensor, columns: Tensor) -> Tensor:
    """Which columns (1 or b, t), counted from 0 in each row, hold a real token."""
    return columns < lengths[:, None]  # (b, t)


def columns(position_ids: Tensor) -> Tensor:
    """The number of each column, from 0, in the shape of `position_ids` that count otherwise (RoBERTa).

    Ones are summed up, for `arange` and `ones_like` would put a Shape node into the graph.
    """
    return (position_ids * 0 + 1).cumsum(dim=1) - 1


def additive(allowed: Tensor) -> Tensor:
    """True becomes 0, False minus infinity: added to an affinity, the one changes nothing and the other ends it."""
    return torch.zeros_like(allowed, dtype=torch.get_default_dtype()).masked_fill(~allowed, float("-inf"))
