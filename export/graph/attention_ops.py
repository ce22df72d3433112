"""The runtime's fused attention operators, which replace the block's own attention while a graph is traced.

`SelfAttention.attend` is replaced by a function that emits one node. The node masks by itself, by lengths or by
causality, so the mask that the model passes is dead code and disappears from the graph. In eager PyTorch these nodes
compute nothing (they return zeros), so the replacement lasts only as long as the trace.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.attention import SelfAttention

# GroupQueryAttention takes no other head widths, and nor do the fused CUDA kernels of MultiHeadAttention.
HEAD_WIDTH_MULTIPLE = 8


class EncoderAttention:
    """MultiHeadAttention. `lengths` (b, int32) counts each row's real tokens; None: all tokens are real (ViT).

    OpenVINO runs this operator, too; GroupQueryAttention is 2.3 times slower on the CPU provider. On CUDA, the fused
    kernels take lengths, but no additive mask.
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
            {"num_heads": heads, **scale_attribute(scale)},
            dtype=query.dtype,
            shape=query.shape,  # (b, t, d)
            version=1,
        )


class DecoderAttention:
    """GroupQueryAttention: causal attention over a cache of keys and values, to which it adds those of the new tokens.

    `past` are the caches (b, h, capacity, k): keys and values of layer 0, of layer 1, …; `present` are the caches after
    the run. `lengths` (b, int32) counts the tokens of each row in the cache after the run, `total` (1, int32) is their
    maximum. The layers must be called in order, because each call takes the next cache. They must have packed
    projections: the query argument also has the key and the value, (b, t, 3 d).
    """

    def __init__(self, lengths: Tensor, total: Tensor, past: Sequence[Tensor]) -> None:
        self.last = lengths - 1  # the position of the newest token
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
            {"num_heads": heads, "kv_num_heads": heads, **scale_attribute(scale)},
            dtypes=(packed.dtype, past_key.dtype, past_value.dtype),
            shapes=((*packed.shape[:-1], packed.shape[-1] // 3), past_key.shape, past_value.shape),
            version=1,
        )
        self.present.extend(present)
        return attended


def scale_attribute(scale: float | None) -> dict[str, float]:
    """The scale attribute of both operators; without it they use one over the square root of the head width."""
    return {} if scale is None else {"scale": scale}


class MergedProjection(nn.Module):
    """Takes the place of a projection that was merged into another one."""

    def forward(self, x: Tensor) -> None:
        return None


def attentions(model: nn.Module) -> list[SelfAttention]:
    """The self-attention modules of `model`, in order."""
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


@contextmanager
def packed_projections(model: nn.Module) -> Iterator[None]:
    """Within the block, one matrix computes queries, keys and values: one product instead of three.

    Heads are padded to `padded_width`. The zeros added to queries and keys do not change their products; those added
    to values are multiplied by zeros in the output projection.
    """
    layers = attentions(model)
    merged = cast(nn.Linear, MergedProjection())
    originals = [(layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.scale) for layer in layers]
    try:
        for layer, (*matrices, out_proj, scale) in zip(layers, originals, strict=True):
            width = out_proj.weight.shape[1] // layer.heads
            layer.scale = 1 / sqrt(width) if scale is None else scale  # of the heads without padding
            stacked = [pad_heads(part, layer.heads) for matrix in matrices for part in (matrix.weight, matrix.bias)]
            layer.q_proj = linear(torch.cat(stacked[::2]), torch.cat(stacked[1::2]))
            layer.k_proj = layer.v_proj = merged
            layer.out_proj = linear(pad_heads(out_proj.weight.T, layer.heads).T, out_proj.bias.detach())
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.q_proj, layer.k_proj, layer.v_proj, layer.out_proj, layer.scale = original


def padded_width(width: int) -> int:
    """The width of a head in a graph with a cache: the smallest that the operator takes."""
    return -(-width // HEAD_WIDTH_MULTIPLE) * HEAD_WIDTH_MULTIPLE


def pad_heads(rows: Tensor, heads: int) -> Tensor:
    """Rows (h · k, …) with rows of zeros after each head, up to its padded width."""
    by_head = rows.detach().reshape(heads, -1, *rows.shape[1:])  # (h, k, …)
    missing = padded_width(by_head.shape[1]) - by_head.shape[1]
    return functional.pad(by_head, (0, 0) * (rows.ndim - 1) + (0, missing)).flatten(0, 1)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with these weights."""
    with torch.device("meta"):  # no memory, no initial values
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


@contextmanager
def replaced_attention(model: nn.Module, attend: Any) -> Iterator[None]:
    """Within the block, `attend` computes every self-attention of `model`."""
    layers = attentions(model)
    originals = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = attend
        yield
    finally:
        for layer, original in zip(layers, originals, strict=True):
            layer.attend = original
