"""Products of integers: matrices in 8 bits with a scale for each column, and inputs that are quantised at run time.

In place of a product with a constant matrix, DynamicQuantizeLinear gives the whole input one scale and one zero point,
and MatMulIntegerToFloat multiplies the integers and adds the bias. Where one input is multiplied by the matrices of
queries, keys and values, QAttention multiplies by all three at once and computes the attention in fp32.

The integers of a matrix are within ±63, which are 7 bits. Kernels for processors without VNNI (vpmaddubsw) add pairs of
products of unsigned and signed bytes in 16 bits, and pairs beyond ±32,767 are cut off without notice: 255 × 127 × 2 is,
255 × 63 × 2 is not. An artifact is exported once for all machines. 7 bits are as fast as 8, and export/README.md states
the cost in error.

Norms, activation functions, embeddings and the products within attention stay in fp32. The head is quantised as in the
weight-only precisions (quantise.py): it has few rows, for which blocks with scales of their own cost no time.
"""

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_nodes_and_values

from export.graph.quantise import HEAD, PRODUCTS, constant

LARGEST = 63  # of the integers of a matrix
MICROSOFT = "com.microsoft"
SWAPPED = (0, 2, 1)  # the axes of a batch of transposed matrices
QKV = 3
Floats = NDArray[np.float32]


def quantize_products(model: onnx_ir.Model) -> onnx_ir.Model:
    """The graph with products of integers everywhere except in the head."""
    graph = model.graph
    for node in list(graph):
        if node.op_type == "MultiHeadAttention":
            replace_attention(graph, node)
    for node in list(graph):
        if constant_matrix(node) is not None:
            replace_product(graph, node)
    used = {value for node in graph for value in node.inputs}
    for name, value in list(graph.initializers.items()):
        if value not in used:
            graph.initializers.pop(name)
    return model


def constant_matrix(node: onnx_ir.Node) -> Floats | None:
    """The constant matrix (k, n) of a matrix product outside of the head; None for other nodes."""
    if node.op_type not in PRODUCTS:
        return None
    weight, attributes = node.inputs[1], node.attributes
    if weight is None or weight.const_value is None or str(weight.name).startswith(HEAD):
        return None
    scaled = any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    batched = any(attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB"))
    transposed_gemm = node.op_type == "Gemm" and attributes.get_int("transA", 0) != 0  # of two axes: none of our graphs
    if scaled or batched or transposed_gemm or len(weight.const_value.shape) != len("kn"):
        return None
    matrix: Floats = weight.const_value.numpy()
    return matrix.T if attributes.get_int("transB", 0) else matrix


def replace_product(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Replace a product with a constant matrix, and the bias that is added to it."""
    matrix, x, weight = constant_matrix(node), node.inputs[0], node.inputs[1]
    assert matrix is not None, "no product with a constant matrix: this is a bug"
    assert x is not None, "a product without an input: this is a bug"
    assert weight is not None, "a product without a matrix: this is a bug"
    quantised, scale, zero_point = quantized_input(graph, x)
    if node.attributes.get_int("transA", 0):  # of MLP-Mixer; bytes are transposed faster than floats
        transposed = onnx_ir.node("Transpose", [quantised], {"perm": SWAPPED}, name=f"{node.name}.transpose")
        transposed.outputs[0].name = f"{node.name}.transposed"
        graph.insert_before(node, transposed)
        quantised = transposed.outputs[0]
    integers, scales = quantize_columns(matrix)
    inputs: list[onnx_ir.Value | None] = [
        quantised,
        constant(graph, f"{weight.name}.int8", integers),
        scale,
        constant(graph, f"{weight.name}.scales", scales),
        zero_point,
    ]
    bias = node.inputs[2] if len(node.inputs) > len("ab") else take_bias(graph, node.outputs[0], matrix.shape[1])
    if bias is not None:
        inputs += [None, bias]
    product = onnx_ir.node("MatMulIntegerToFloat", inputs, domain=MICROSOFT, name=node.name)
    replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)


def take_bias(graph: onnx_ir.Graph, product: onnx_ir.Value, width: int) -> onnx_ir.Value | None:
    """Remove the addition of a bias (n) from the only node that uses a product. Returns the bias; None: there is none.

    The kernel of BiasGelu takes nearly twice as long as that of Gelu: 1.9 ms and 1.1 ms for 1,024 rows of 3,072 values.
    """
    uses = product.uses()
    node = next(iter(uses)).node if len(uses) == 1 else None
    if node is None or node.op_type not in ("Add", "Sum", "BiasGelu"):
        return None
    others = [value for value in node.inputs if value is not product]
    bias = next((each for each in others if each is not None and is_bias(each, width)), None)
    if bias is None:
        return None
    if node.op_type == "Add":
        node.outputs[0].replace_all_uses_with(product, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        return bias
    kind, domain = ("Gelu", MICROSOFT) if node.op_type == "BiasGelu" else ("Sum", "")
    inputs = [value for value in node.inputs if value is not bias]
    without = onnx_ir.node(kind, inputs, domain=domain, name=node.name)
    replace_nodes_and_values(graph, node, [node], [without], node.outputs, without.outputs)
    return bias


def replace_attention(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Replace MultiHeadAttention and the three products before it, if these have the same input."""
    products, biases = zip(*(projection(value) for value in node.inputs[:QKV]), strict=True)
    found = (constant_matrix(product) for product in products if product is not None)
    matrices = [matrix for matrix in found if matrix is not None]
    if len(matrices) < QKV or len({product.inputs[0] for product in products}) > 1:
        return
    x, lengths = products[0].inputs[0], node.inputs[4] if len(node.inputs) > 4 else None
    quantised, scale, zero_point = quantized_input(graph, x)
    integers, scales = quantize_columns(np.concatenate(matrices, axis=1))  # (d, 3 d)
    width = integers.shape[1] // QKV
    added = np.concatenate([np.zeros(width, np.float32) if bias is None else array(bias) for bias in biases])
    inputs = [
        quantised,
        constant(graph, f"{node.name}.qkv.int8", integers),
        constant(graph, f"{node.name}.qkv.bias", added),
        scale,
        constant(graph, f"{node.name}.qkv.scales", scales),
        lengths,
        zero_point,
    ]
    attention = onnx_ir.node("QAttention", inputs, node.attributes, domain=MICROSOFT, name=node.name)
    with_bias = [value.producer() for value in node.inputs[:QKV] if value is not None]
    replace_nodes_and_values(graph, node, [node], [attention], node.outputs, attention.outputs)
    graph.remove({each for each in (*with_bias, *products) if each is not None}, safe=True)


def projection(value: onnx_ir.Value | None) -> tuple[onnx_ir.Node | None, onnx_ir.Value | None]:
    """The product that computes queries, keys or values and nothing else, and its bias, if there is one."""
    node, bias = (value.producer() if value is not None and len(value.uses()) == 1 else None), None
    if node is not None and node.op_type == "Add":
        first, second = node.inputs
        if second is not None and second.const_value is not None and first is not None and len(first.uses()) == 1:
            node, bias = first.producer(), second
    return (node, bias) if node is not None and node.op_type == "MatMul" else (None, None)


def is_bias(value: onnx_ir.Value, width: int) -> bool:
    """Whether a value is a constant vector with a number for each column."""
    return value.const_value is not None and tuple(value.const_value.shape) == (width,)


def array(value: onnx_ir.Value) -> NDArray[Any]:
    """The array of a constant."""
    assert value.const_value is not None, "no constant: this is a bug"
    return value.const_value.numpy()


def quantized_input(graph: onnx_ir.Graph, x: onnx_ir.Value) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value]:
    """The bytes of x, their scale and their zero point, by one node for all products that multiply x."""
    node = next((use.node for use in x.uses() if use.node.op_type == "DynamicQuantizeLinear"), None)
    if node is None:
        node = onnx_ir.node("DynamicQuantizeLinear", [x], num_outputs=3, name=f"{x.name}.quantise")
        for value, suffix in zip(node.outputs, ("uint8", "scale", "zero_point"), strict=True):
            value.name = f"{x.name}.{suffix}"
        producer = x.producer()
        assert producer is not None, "a product of an input of the graph: this is a bug"
        graph.insert_after(producer, node)
    quantised, scale, zero_point = node.outputs
    return quantised, scale, zero_point


def quantize_columns(matrix: Floats) -> tuple[NDArray[np.int8], Floats]:
    """A matrix (k, n) as integers (k, n) within ±63, and the scale of each column (n)."""
    largest = np.abs(matrix).max(axis=0)
    scales: Floats = np.where(largest > 0, largest / LARGEST, 1).astype(np.float32)
    return np.rint(matrix / scales).clip(-LARGEST, LARGEST).astype(np.int8), scales
