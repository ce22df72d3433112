"""The runtime's fused attention in place of the block's own, while a graph is traced.

`SelfAttention.attend` is swapped for a function that emits one node. The mask that the model hands over is then dead
code and vanishes from the graph: the node gets lengths, or looks at the past only, by itself. In eager PyTorch these
nodes compute nothing (zeros come out), so the swap lasts as long as the trace and no longer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.attention import SelfAttention

# GroupQueryAttention on CUDA takes no other widths, and neither do the fused kernels behind MultiHeadAttention.
HEAD_WIDTH_MULTIPLE = 8


class Encoder:
    """MultiHeadAttention. `lengths` (b, int32) counts each row's real tokens; None if all of them are (ViT).

    On the CPU provider it goes whole to OpenVINO too; GroupQueryAttention there is 2.3 times slower. On CUDA, lengths
    leave the fused kernels open that an additive mask closes.
    """

    def __init__(self, lengths: Tensor | None) -> None:
        self.lengths = lengths

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, heads: int) -> Tensor:
        inputs = [query, key, value] if self.lengths is None else [query, key, value, None, self.lengths]
        return torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            inputs,
            {"num_heads": heads},
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

    def __call__(self, packed: Tensor, key: None, value: None, mask: Tensor | None = None, *, heads: int) -> Tensor:
        layer = len(self.present)
        past_key, past_value = self.past[layer : layer + 2]
        attended, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [packed, None, None, past_key, past_value, self.last, self.total],
            {"num_heads": heads, "kv_num_heads": heads},
            dtypes=(packed.dtype, past_key.dtype, past_value.dtype),
            shapes=((*packed.shape[:-1], packed.shape[-1] // 3), past_key.shape, past_value.shape),
            version=1,
        )
        self.present.extend(present)
        return attended


class Nothing(nn.Module):
    """Stands where a matrix was that is part of another now."""

    def forward(self, x: Tensor) -> None:
        return None


def attentions(model: nn.Module) -> list[SelfAttention]:
    """The self-attentions of `model`, in order."""
    return [module for module in model.modules() if isinstance(module, SelfAttention)]


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Queries, keys and values come out of one matrix until the end of the block: one product in place of three."""
    layers = attentions(model)
    nothing = cast(nn.Linear, Nothing())
    originals = [(layer.to_query, layer.to_key, layer.to_value) for layer in layers]
    try:
        for layer, matrices in zip(layers, originals, strict=True):
            layer.to_query, layer.to_key, layer.to_value = stacked(matrices), nothing, nothing
        yield
    finally:
        for layer, matrices in zip(layers, originals, strict=True):
            layer.to_query, layer.to_key, layer.to_value = matrices


def stacked(matrices: Sequence[nn.Linear]) -> nn.Linear:
    """One linear layer that computes what several do, side by side."""
    weight = torch.cat([matrix.weight.detach() for matrix in matrices])
    with torch.device("meta"):  # no memory, no initial values: both come from the others
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(torch.cat([matrix.bias.detach() for matrix in matrices]))
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
