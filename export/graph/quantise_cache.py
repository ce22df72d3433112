"""Keys and values in int8: a quarter of the memory, and of the bytes that a decode step reads from the cache.

Each channel of each head has a constant scale, because a few channels of the keys are much larger than the others
(Hooper et al., "KVQuant", 2024). PyTorch measures the largest values on texts; larger ones, if there are any, saturate.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from export.graph.attention_ops import attentions
from export.graph.quantise import constant
from export.graph.recipes import GptRecipe
from models import GptConfig

# The largest absolute value of each channel (heads, head_width): the keys of layer 0, its values, the keys of layer 1…
Largest = Sequence[NDArray[np.float32]]
RANDOM_TOKENS = 2048
MARGIN = 1.1  # of a scale, for values that are larger than all measured ones
INT8_MAX = 127
PAST_KEY, SINK, KEY_SCALE, VALUE_SCALE = 3, 11, 12, 13  # inputs of GroupQueryAttention
# A sink adds the exponential of its score to the sum of a softmax: here zero. With a sink, the runtime computes the
# attention over quantised keys as a whole instead of in blocks, which is faster. GPT-2 with int8 weights on two cores
# with AVX512-VNNI, 8 rows of 1,000 tokens: 18 ms a step instead of 22; 16 rows: 30 instead of 47 (26 November 2026).
NO_SINK = -1e9


def largest_values(recipe: GptRecipe, texts: Sequence[Sequence[int]], seed: int = 0) -> Largest:
    """The largest keys and values in these texts of token ids, one after the other, and then in random tokens.

    They are read in rows of all positions, because PyTorch prepares for each new length.
    """
    layers = attentions(recipe.model)
    projections = [projection for layer in layers for projection in (layer.k_proj, layer.v_proj)]
    largest = [torch.zeros(projection.out_features) for projection in projections]

    def measure(found: Tensor) -> Any:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            torch.maximum(found, output.abs().amax(dim=(0, 1)), out=found)  # (b, t, d) → (d)

        return hook

    pairs = zip(projections, largest, strict=True)
    hooks = [projection.register_forward_hook(measure(found)) for projection, found in pairs]
    rows = in_rows([token for text in texts for token in text], recipe.config, seed)
    positions = torch.arange(rows.shape[1])[None]
    try:
        with torch.inference_mode():
            for ids in rows[:, None]:
                recipe.reference({"input_ids": ids, "position_ids": positions, "selected": torch.zeros(1).long()})
    finally:
        for each in hooks:
            each.remove()
    heads = recipe.config.heads
    return [
        functional.pad(found.view(heads, -1), (0, recipe.head_width - len(found) // heads)).numpy() for found in largest
    ]


def in_rows(tokens: list[int], config: GptConfig, seed: int) -> Tensor:
    """The tokens and at least RANDOM_TOKENS random ones, (n, positions)."""
    count = -(-(len(tokens) + RANDOM_TOKENS) // config.positions) * config.positions
    random = np.random.default_rng(seed).integers(0, config.vocabulary, count - len(tokens))
    return torch.tensor([*tokens, *random.tolist()]).view(-1, config.positions)


def quantize_cache(model: onnx_ir.Model, largest: Largest) -> None:
    """Store keys and values in int8, in the caches of the graph and in its GroupQueryAttention."""
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs):
        if str(value.name).startswith(("past_", "present_")):
            value.dtype = onnx_ir.DataType.INT8
    for node in graph:
        if node.op_type != "GroupQueryAttention":
            continue
        past = node.inputs[PAST_KEY]
        layer = int(str(past.name if past else None).removeprefix("past_key."))
        keys, values = largest[2 * layer : 2 * layer + 2]
        node.resize_inputs(VALUE_SCALE + 1)
        node.replace_input_with(SINK, constant(graph, "no_sink", np.full(len(keys), NO_SINK, np.float32)))
        node.replace_input_with(KEY_SCALE, constant(graph, f"key_scale.{layer}", scales(keys)))
        node.replace_input_with(VALUE_SCALE, constant(graph, f"value_scale.{layer}", scales(values)))
        for name in ("k_quant_type", "v_quant_type"):
            node.attributes.add(onnx_ir.AttrString(name, "PER_CHANNEL"))
        node.attributes.add(onnx_ir.AttrInt64("kv_cache_bit_width", 8))


def scales(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scales (1, heads, 1, head_width) for these values (heads, head_width). A channel of zeros may have any."""
    found = np.where(largest > 0, largest, 1) * np.float32(MARGIN / INT8_MAX)
    return found.astype(np.float32)[None, :, None]
