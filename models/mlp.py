"""The multi-layer perceptron: across the width in every block, and across the positions in MLP-Mixer."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional


def gelu_tanh(x: Tensor) -> Tensor:
    """GPT-2's GELU, with a tanh in place of the error function. The two differ by up to 5e-4."""
    return functional.gelu(x, approximate="tanh")


# By the names of transformers, which has several names for some formulas.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_python": functional.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_accurate": gelu_tanh,
    "gelu_10": lambda x: functional.gelu(x).clamp(-10, 10),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": functional.silu,
    "swish": functional.silu,
    "mish": lambda x: x * torch.tanh(functional.softplus(x)),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x) ** 2,
    "relu6": lambda x: x.clamp(0, 6),
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.01),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "laplace": lambda x: (1 + torch.erf((x - 0.707107) / (0.282095 * sqrt(2)))) / 2,
    "sqrtsoftplus": lambda x: functional.softplus(x).sqrt(),
    "linear": lambda x: x,
}


class Mlp(nn.Module):
    """Two linear layers with an activation between them, applied to each position; 8·d² weights with `hidden = 4·d`."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = ACTIVATIONS[activation]
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # (..., d)
        return self.fc2(self.activation(self.fc1(x)))


class TokenMixing(nn.Module):
    """MLP-Mixer's replacement for attention: the same MLP, applied across positions instead of across the width.

    Its weights belong to positions, so it takes inputs of one length only.

    Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision", 2021.
    """

    def __init__(self, positions: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.mlp = Mlp(positions, hidden, activation)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # x: (b, t, d)
        if mask is not None:
            raise ValueError("found a mask, expected none: an MLP across positions cannot leave any of them out")
        return self.mlp(x.transpose(1, 2)).transpose(1, 2)  # (b, d, t) inside
