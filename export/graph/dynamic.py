"""Products of integers: matrices in 8 bits with a scale for each column, inputs in 8 bits with a scale for each row.

The scale of a row, which is a token or a patch, follows at run time from its own values alone, so that no result
depends on what else is in the batch. This is the token-wise quantisation of ZeroQuant (Yao et al. 2022,
https://arxiv.org/abs/2206.01861). MatMulIntegerToFloat takes one scale for its whole input. Therefore each row is
divided by its largest absolute value, all are rounded to multiples of 1/127, and the rows of the product are multiplied
by what they were divided by.

The integers of a matrix are within ±63, which are 7 bits. Kernels for processors without VNNI (vpmaddubsw) add pairs of
products of unsigned and signed bytes in 16 bits, and pairs beyond ±32,767 are cut off without notice: 255 × 127 × 2 is,
255 × 63 × 2 is not. An artifact is exported once for all machines. 7 bits are as fast as 8, and export/README.md states
the cost in error.

Norms, activation functions, embeddings and the products within attention stay in fp32. The head is quantised as in the
weight-only precisions (quantise.py): it has few rows, for which blocks with scales of their own cost no time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_nodes_and_values

from export.graph.quantise import HEAD, constant, constant_matrix, matrix_of

LARGEST = 63  # of the integers of a matrix
STEPS = 127  # of an input, from 0 to the largest absolute value of its row
ZERO = 128  # the byte for 0 of an input
LEAST = np.finfo(np.float32).tiny  # that a row is divided by: a row of zeros stays zero
SWAPPED = (0, 2, 1)  # the axes of a batch of transposed matrices
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class QuantizedRows:
    """An input (..., m, k) as bytes, and what its rows (..., m, 1) were divided by."""

    bytes: onnx_ir.Value
    divisors: onnx_ir.Value


def quantize_products(model: onnx_ir.Model) -> onnx_ir.Model:
    """The graph with products of integers everywhere except in the head."""
    graph, quantized = model.graph, dict[tuple[onnx_ir.Value, bool], QuantizedRows]()
    for node in list(graph):
        weight, x = constant_matrix(node, transposed_input=True), node.inputs[0] if node.inputs else None
        if weight is None or x is None or str(weight.name).startswith(HEAD):
            continue
        key = x, bool(node.attributes.get_int("transA", 0))
        if key not in quantized:
            quantized[key] = quantize_rows(graph, node, x)
        replace_product(graph, node, weight, quantized[key])
    used = {value for node in graph for value in node.inputs}
    for name, value in list(graph.initializers.items()):
        if value not in used:
            graph.initializers.pop(name)
    return model


def quantize_rows(graph: onnx_ir.Graph, product: onnx_ir.Node, x: onnx_ir.Value) -> QuantizedRows:
    """Quantise the first input of a product, before it."""

    def add(kind: str, suffix: str, *inputs: onnx_ir.Value, **attributes: int | Sequence[int]) -> onnx_ir.Value:
        node = onnx_ir.node(kind, list(inputs), attributes, name=f"{x.name}.{suffix}")
        node.outputs[0].name = f"{x.name}.{suffix}"
        graph.insert_before(product, node)
        return node.outputs[0]

    transposed = bool(product.attributes.get_int("transA", 0))  # of MLP-Mixer
    axis = constant(graph, "columns" if transposed else "rows", np.array([-2 if transposed else -1]))
    largest = add("ReduceMax", "largest", x, axis, keepdims=1)
    negated = add("Neg", "negated", add("ReduceMin", "smallest", x, axis, keepdims=1))
    divisors = add("Max", "divisors", largest, negated, constant(graph, "rows.least", np.array(LEAST)))
    quantized = add("QuantizeLinear", "uint8", add("Div", "divided", x, divisors), *step_and_zero(graph))
    if transposed:  # bytes are transposed faster than floats
        quantized = add("Transpose", "uint8.rows", quantized, perm=SWAPPED)
        divisors = add("Transpose", "divisors.rows", divisors, perm=SWAPPED)
    return QuantizedRows(quantized, divisors)


def step_and_zero(graph: onnx_ir.Graph) -> tuple[onnx_ir.Value, onnx_ir.Value]:
    """The scale and the zero point of all quantised inputs."""
    step, zero = np.array(1 / STEPS, np.float32), np.array(ZERO, np.uint8)
    return constant(graph, "rows.step", step), constant(graph, "rows.zero", zero)


def replace_product(graph: onnx_ir.Graph, node: onnx_ir.Node, weight: onnx_ir.Value, rows: QuantizedRows) -> None:
    """Replace a product with the constant `weight` by one of integers with `rows`."""
    integers, scales = quantize_columns(matrix_of(node, weight))
    step, zero = step_and_zero(graph)
    inputs = [
        rows.bytes,
        constant(graph, f"{weight.name}.int8", integers),
        step,
        constant(graph, f"{weight.name}.scales", scales),
        zero,
    ]
    product = onnx_ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft", name=f"{node.name}.int8")
    product.outputs[0].name = f"{node.name}.int8"
    nodes = [product, onnx_ir.node("Mul", [product.outputs[0], rows.divisors], name=node.name)]
    if len(node.inputs) > 2:  # Gemm
        nodes[-1].outputs[0].name = f"{node.name}.scaled"
        nodes.append(onnx_ir.node("Add", [nodes[-1].outputs[0], node.inputs[2]], name=f"{node.name}.bias"))
    replace_nodes_and_values(graph, node, [node], nodes, node.outputs, nodes[-1].outputs)


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A matrix (k, n) as integers (k, n) within ±63, and the scale of each column (n)."""
    largest = np.abs(matrix).max(axis=0)
    scales: Floats = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(matrix / scales).clip(-LARGEST, LARGEST).astype(np.int8), scales
