"""Matrices stored in 8 or 4 bits: MatMulNBits in place of the products with a constant matrix.

Each column is cut into blocks of up to 256 numbers, rounded to the nearest of a few steps of a scale of their own. The
kernels are those behind `onnxruntime.quantization`'s MatMulNBitsQuantizer, called by themselves: the module around them
configures the process's logging when it is imported, and works on another representation of the graph.
Norms, biases, positions and the attention's own products keep their precision; words do where the head has others. So
do the MLPs across positions of MLP-Mixer where they multiply a transposed input, which the operator does not take; they
are its small matrices.
"""

from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.convenience import replace_nodes_and_values
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

from export.precisions import BITS, Precision

KERNELS = {4: quantize_matmul_4bits, 8: quantize_matmul_8bits}
PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
# Numbers that share a scale, by bits, the first that fits: smaller blocks err less and take the runtime longer. In 4
# bits blocks of 32 would err by a fifth less than those of 128 and take 64 rows a third longer; in 8 bits blocks of 128
# would take a quarter longer than those of 256 (768 × 3072, 2 cores with AVX512-VNNI: 0.95 ms and not 0.76).
BLOCKS = {8: (256, 128, 64, 32), 4: (128, 64, 32)}
INT8_INPUTS = 4  # the accuracy level at which inputs are rounded to int8 too, block by block: the fast way
HEAD = ("model.head.", "model.layers.")  # how the names of the last matrices begin: see `models`


def quantize(model: onnx_ir.Model, precision: Precision) -> onnx_ir.Model:
    """The graph with its matrices as a weight-only `precision` has them."""
    for node in list(model.graph):
        weight = matrix(node)
        if weight is None:
            continue
        bits = BITS[precision.head if str(weight.name).startswith(HEAD) else precision.weights]
        if bits is not None:
            replace(model.graph, node, weight, bits)
    for node in list(model.graph):
        if node.op_type == "Gather":
            look_up(model.graph, node)
    return model


def matrix(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """The constant matrix that a node multiplies its input by; None if it does not, or does more than that."""
    if node.op_type not in PRODUCTS:
        return None
    weight, attributes = node.inputs[1], node.attributes
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return None
    scaled = any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    transposed = any(attributes.get_int(name, 0) for name in ("transA", "transBatchA", "transBatchB"))
    return None if scaled or transposed or len(weight.const_value.shape) != 2 else weight


def replace(graph: onnx_ir.Graph, node: onnx_ir.Node, weight: onnx_ir.Value, bits: int) -> None:
    """MatMulNBits in place of `node`; the matrix goes when nobody else needs it."""
    assert weight.const_value is not None, "only constants are quantised: this is a bug"
    array = weight.const_value.numpy()
    if node.attributes.get_int("transB", 0):
        array = array.T
    rows, columns = array.shape
    quantised, scales = rounded(array, bits)
    inputs = [
        node.inputs[0],
        constant(graph, f"{weight.name}.int{bits}", quantised),
        constant(graph, f"{weight.name}.scales", scales),
    ]
    if len(node.inputs) > 2:  # Gemm's bias, behind zero points and an order of rows that are not used
        inputs += [None, None, node.inputs[2]]
    product = onnx_ir.node(
        "MatMulNBits",
        inputs,
        {"K": rows, "N": columns, "bits": bits, "block_size": block_of(rows, bits), "accuracy_level": INT8_INPUTS},
        domain="com.microsoft",
        name=node.name,
    )
    replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
    if not weight.uses():
        graph.initializers.pop(str(weight.name))


def look_up(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Words looked up in the matrix that the head uses backwards, where that is stored in int8: once for both.

    Half of what GPT-2 would take otherwise, and the error does not grow. The two operators want it in other shapes.
    """
    words, ids = node.inputs[:2]
    stored = graph.initializers.get(f"{words.name}.int8") if words is not None else None
    if words is None or words.shape is None or stored is None or stored.const_value is None:
        return
    width = words.shape[-1]
    if not isinstance(width, int) or width % block_of(width, 8):  # a row would end in the middle of a block
        return
    blocks = stored.const_value.numpy()
    flat = constant(graph, f"{words.name}.int8.rows", blocks.reshape(len(blocks), -1))
    shape = constant(graph, f"{words.name}.int8.shape", np.array(blocks.shape))
    gather = onnx_ir.node(
        "GatherBlockQuantized",
        [flat, ids, graph.initializers[f"{words.name}.scales"]],
        {"bits": 8, "block_size": block_of(width, 8), "gather_axis": 0, "quantize_axis": 1},
        domain="com.microsoft",
        name=node.name,
    )
    replace_nodes_and_values(graph, node, [node], [gather], node.outputs, gather.outputs)
    reshape = onnx_ir.node("Reshape", [flat, shape], name=f"{words.name}.int8.blocks")
    reshape.outputs[0].name = f"{words.name}.int8.blocks"
    stored.replace_all_uses_with(reshape.outputs[0])
    graph.insert_before(graph[0], reshape)
    graph.initializers.pop(str(stored.name))
    if not words.uses():
        graph.initializers.pop(str(words.name))


def constant(graph: onnx_ir.Graph, name: str, array: NDArray[Any]) -> onnx_ir.Value:
    """A constant of the graph, stored once under its name."""
    if name not in graph.initializers:
        tensor = onnx_ir.Tensor(array, name=name)
        dtype = onnx_ir.TensorType(tensor.dtype)
        graph.register_initializer(
            onnx_ir.Value(name=name, type=dtype, shape=onnx_ir.Shape(array.shape), const_value=tensor)
        )
    return graph.initializers[name]


def block_of(rows: int, bits: int) -> int:
    """How many numbers of a column of so many share a scale: as many as leave no block half empty, if that can be."""
    return next((block for block in BLOCKS[bits] if rows % block == 0), BLOCKS[bits][-1])


def rounded(matrix: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A matrix (k, n) as whole numbers (n, blocks, bytes of a block) and their scales (n, blocks)."""
    k, n = matrix.shape
    block = block_of(k, bits)
    blocks = -(-k // block)
    padded = np.ascontiguousarray(np.pad(matrix, ((0, blocks * block - k), (0, 0))))
    quantised: NDArray[np.uint8] = np.zeros((n, blocks, block * bits // 8), np.uint8)
    scales: NDArray[np.float32] = np.zeros((n, blocks), np.float32)
    middle: NDArray[np.uint8] = np.zeros((n, -(-blocks * bits // 8)), np.uint8)  # symmetric: every zero is the middle
    KERNELS[bits](quantised, padded, scales, middle, block, n, k, True)
    return quantised, scales
