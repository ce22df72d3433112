"""The runtime's fused attention in place of the block's own, while a graph is traced.

`SelfAttention.attend` is swapped for a function that emits one node. The mask that the model hands over is then dead
code and vanishes from the graph: the node gets lengths, or looks at the past only, by itself. In eager PyTorch these
nodes compute nothing (zeros come out), so the swap lasts as long as the trace and no longer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import SelfAttention

# GroupQueryAttention takes no other widths, and neither do the fused kernels behind MultiHeadAttention on CUDA.
HEAD_WIDTH_MULTIPLE = 8


class Encoder:
    """MultiHeadAttention. `lengths` (b, int32) counts each row's real tokens; None if all of them are (ViT).

    On the CPU provider it goes whole to OpenVINO too; GroupQueryAttention there is 2.3 times slower. On CUDA, lengths
    leave the fused kernels open that an additive mask closes.
    """

    def __init__(self, lengths: Tensor | None) -> None:
        self.lengths = lengths

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        *,
        heads: int,
        scale: float | None = None,
    ) -> Tensor:
        inputs = [query, key, value] if self.lengths is None else [query, key, value, None, self.lengths]
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            inputs,
            {"num_heads": heads, **scaled(scale)},
            dtype=query.dtype,
            shape=query.shape,  # (b, t, d)
            version=1,
        )


class Decoder:
    """GroupQueryAttention: causal, over the keys and values of earlier tokens, to which it adds the new ones.

    `past` are the caches (b, h, capacity, k), keys and values of layer 0, of layer 1, …; `present` what they become.
    `lengths` (b, int32) counts the tokens of each row in the cache after this run, `total` (1, int32) bounds them.
    Layers must be called in order: this is how each finds its cache. They must be `packed`: what arrives as a query
    holds the key and the value too, (b, t, 3 d).
    """

    def __init__(self, lengths: Tensor, total: Tensor, past: Sequence[Tensor]) -> None:
        self.last = lengths - 1  # where the newest token stands
        self.total = total
        self.past = past
        self.present: list[Tensor] = []

    def __call__(
        self,
        packed: Tensor,
        key: None,
        value: None,
        mask: Tensor | None = None,
        *,
        heads: int,
        scale: float | None = None,
    ) -> Tensor:
        layer = len(self.present)
        past_key, past_value = self.past[layer : layer + 2]
        attended, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [packed, None, None, past_key, past_value, self.last, self.total],
            {"num_heads": heads, "kv_num_heads": heads, **scaled(scale)},
            dtypes=(packed.dtype, past_key.dtype, past_value.dtype),
            shapes=((*packed.shape[:-1], packed.shape[-1] // 3), past_key.shape, past_value.shape),
            version=1,
        )
        self.present.extend(present)
        return attended


def scaled(scale: float | None) -> dict[str, float]:
    """The attribute of both operators, which without it take one over the square root of a head's width."""
    return {} if scale is None else {"scale": scale}


class Nothing(nn.Module):
    """Stands where a matrix was that is part of another now."""

    def forward(self, x: Tensor) -> None:
        return None


def attentions(model: nn.Module) -> list[SelfAttention]:
    """The self-attentions of `model`, in order."""
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Queries, keys and values come out of one matrix until the end of the block: one product in place of three.

    Heads have the width that `padded_width` says. The zeros added to queries and keys leave their products as they
    are, those added to values are multiplied by zeros on the way out.
    """
    layers = attentions(model)
    nothing = cast(nn.Linear, Nothing())
    originals = [(layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.scale) for layer in layers]
    try:
        for layer, (*matrices, out_proj, scale) in zip(layers, originals, strict=True):
            width = out_proj.weight.shape[1] // layer.heads
            layer.scale = 1 / sqrt(width) if scale is None else scale  # of the heads as they were
            stacked = [padded(part, layer.heads) for matrix in matrices for part in (matrix.weight, matrix.bias)]
            layer.q_proj = linear(torch.cat(stacked[::2]), torch.cat(stacked[1::2]))
            layer.k_proj = layer.v_proj = nothing
            layer.out_proj = linear(padded(out_proj.weight.T, layer.heads).T, out_proj.bias.detach())
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.scale = original


def padded_width(width: int) -> int:
    """The width of a head in a graph with a cache: the least that the operator takes."""
    return -(-width // HEAD_WIDTH_MULTIPLE) * HEAD_WIDTH_MULTIPLE


def padded(rows: Tensor, heads: int) -> Tensor:
    """Rows that belong to heads, (h · k, …), with as many rows of zeros after each head as its width lacks."""
    by_head = rows.detach().reshape(heads, -1, *rows.shape[1:])  # (h, k, …)
    lacking = padded_width(by_head.shape[1]) - by_head.shape[1]
    return functional.pad(by_head, (0, 0) * (rows.ndim - 1) + (0, lacking)).flatten(0, 1)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these weights."""
    with torch.device("meta"):  # no memory, no initial values
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


@contextmanager
def swapped(model: nn.Module, attend: Any) -> Iterator[None]:
    """Every self-attention of `model` attends by `attend` until the end of the block."""
    layers = attentions(model)
    originals = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = attend
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.attend = original
