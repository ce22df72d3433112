"""Attention masks: additive, broadcast to (b, h, t, s), 0 where a query may attend to a key, else minus infinity.

The mask is the whole difference between the blocks of BERT (`padding`), GPT (`causal`) and ViT (no mask).
"""

import torch
from torch import Tensor


def causal(positions: int, device: torch.device | None = None) -> Tensor:
    """Each token attends to itself and to earlier tokens. This makes a stack of blocks a generator of text."""
    allowed = torch.ones(positions, positions, dtype=torch.bool, device=device).tril()
    return additive(allowed)  # (t, s)


def padding(lengths: Tensor, columns: Tensor) -> Tensor:
    """No token attends to padding. `lengths` (b) counts the real tokens of each row; the padding follows them."""
    return additive(real(lengths, columns)[:, None, None, :])  # (b, 1, 1, s)


def real(lengths: Tensor, columns: Tensor) -> Tensor:
    """Whether each column (1 or b, t), counted from 0 in each row, holds a real token."""
    return columns < lengths[:, None]  # (b, t)


def columns(position_ids: Tensor) -> Tensor:
    """The number of each column, from 0, for `position_ids` (b, t) that count otherwise (RoBERTa).

    It is a cumulative sum of ones because `arange` and `ones_like` would put a Shape node into the graph.
    """
    return (position_ids * 0 + 1).cumsum(dim=1) - 1


def additive(allowed: Tensor) -> Tensor:
    """True becomes 0 and leaves an affinity as it is; False becomes minus infinity, and the softmax makes it 0."""
    return torch.zeros_like(allowed, dtype=torch.get_default_dtype()).masked_fill(~allowed, float("-inf"))
