"""Self-attention: each token becomes a weighted sum over all tokens. It knows no models, padding or caches."""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor, nn


def softmax(affinity: Tensor) -> Tensor:
    """Turn each row of affinities into weights that are positive and sum to one."""
    return torch.softmax(affinity, dim=-1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    heads: int,
    scale: float | None = None,
    normalise: Callable[[Tensor], Tensor] = softmax,
) -> Tensor:
    """`softmax(Q Kᵀ / √k + mask) V` in each head; (b, t, d) for the query, (b, s, d) for key and value, (b, t, d) back.

    With one head, `scale=1` and no normalisation, `attend(X, X, X)` is `X @ X.T @ X`: every token meets every other.
    `mask` is additive and broadcasts to (b, h, t, s): 0 where a query may attend to a key, else minus infinity.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.2.
    """
    query, key, value = (split_heads(x, heads) for x in (query, key, value))  # (b, h, t, k), (b, h, s, k) twice
    scale = 1 / sqrt(query.shape[-1]) if scale is None else scale
    affinity = query @ key.transpose(-2, -1) * scale  # (b, h, t, s)
    if mask is not None:
        affinity = affinity + mask
    return merge_heads(normalise(affinity) @ value)  # (b, t, d)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Cut the width into heads. Each head attends on its own."""
    b, t, d = x.shape
    return x.view(b, t, heads, d // heads).transpose(1, 2)  # (b, h, t, k)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads again."""
    b, h, t, k = x.shape
    return x.transpose(1, 2).reshape(b, t, h * k)  # (b, t, d)


class SelfAttention(nn.Module):
    """Queries, keys and values of the same tokens, their attention, and a projection to mix the heads: 4·d² weights.

    `scale` multiplies the affinities, 1/√k unless it is given. `attend` is an attribute so that another implementation
    of the same mathematics can take its place.
    """

    def __init__(self, width: int, heads: int, *, scale: float | None = None, qkv_bias: bool = True) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be cut into {heads} heads: expected a multiple of the head count")
        self.heads, self.scale = heads, scale
        self.q_proj = nn.Linear(width, width, bias=qkv_bias)
        self.k_proj = nn.Linear(width, width, bias=qkv_bias)
        self.v_proj = nn.Linear(width, width, bias=qkv_bias)
        self.out_proj = nn.Linear(width, width)
        self.attend: Callable[..., Tensor] = attend

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)  # (b, t, d) each
        return self.out_proj(self.attend(query, key, value, mask, heads=self.heads, scale=self.scale))

    @property
    def qk(self) -> Tensor:
        """(h, d, d): the bilinear form `x qk yᵀ` by which head h measures the affinity of token x for token y.

        Only the product of the query and key matrices matters, not each of them. (Biases are left out.)
        Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
        """
        k = self.q_proj.weight.shape[0] // self.heads
        w_q = self.q_proj.weight.view(self.heads, k, -1)  # (h, k, d)
        w_k = self.k_proj.weight.view(self.heads, k, -1)
        return w_q.transpose(-2, -1) @ w_k  # (h, d, d)

    @property
    def ov(self) -> Tensor:
        """(h, d, d): the vector that head h adds to a token, `y ov`, when it attends to token y.

        Likewise, only the product of the value matrix and the output projection matters.
        """
        k = self.v_proj.weight.shape[0] // self.heads
        w_v = self.v_proj.weight.view(self.heads, k, -1)  # (h, k, d)
        w_out = self.out_proj.weight.view(-1, self.heads, k).transpose(0, 1)  # (h, d, k)
        return (w_out @ w_v).transpose(-2, -1)  # (h, d, d)
