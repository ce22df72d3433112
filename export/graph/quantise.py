"""Matrices stored in 8 or 4 bits: MatMulNBits in place of the products with a constant matrix.

Each column is cut into blocks of up to 256 values with a scale for each block. The kernels are those of
`onnxruntime.quantization`'s MatMulNBitsQuantizer. They are called directly, because that module configures the logging
of the process when it is imported, and works on another representation of the graph.
Norms, biases, position embeddings and the products within attention keep their precision. So does the token embedding,
unless it is tied to a head in int8. So do the MLPs across positions of MLP-Mixer where they multiply a transposed
input, which the operator does not take; these matrices are small.
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
# Block sizes by bits; the first that divides the column is used. Smaller blocks have a smaller error and are slower. In
# 4 bits, blocks of 32 have a fifth less error than blocks of 128, and 64 rows take a third longer; in 8 bits, blocks of
# 128 take a quarter longer than blocks of 256 (768 × 3072, 2 cores with AVX512-VNNI: 0.95 ms instead of 0.76 ms).
BLOCKS = {8: (256, 128, 64, 32), 4: (128, 64, 32)}
INT8_INPUTS = 4  # the accuracy level that rounds inputs to int8, too, block by block: the fast kernels
HEAD = (
    "model.head.",
    "model.vector_layers.",
)  # of the names of matrices in `models`: the head, and the layers on its vector


def quantize(model: onnx_ir.Model, precision: Precision) -> onnx_ir.Model:
    """The graph with its matrices stored as a quantised `precision` says."""
    for node in list(model.graph):
        weight = constant_matrix(node)
        if weight is None:
            continue
        bits = BITS[precision.head if str(weight.name).startswith(HEAD) else precision.weights]
        if bits is not None:
            replace(model.graph, node, weight, bits)
    for node in list(model.graph):
        if node.op_type == "Gather":
            share_with_head(model.graph, node)
    return model


def constant_matrix(node: onnx_ir.Node, *, transposed_input: bool = False) -> onnx_ir.Value | None:
    """The constant matrix of a plain matrix product; None for other nodes.

    With `transposed_input`, a product that transposes its first input, as in MLP-Mixer, is plain, too.
    """
    if node.op_type not in PRODUCTS:
        return None
    weight, attributes = node.inputs[1], node.attributes
    if weight is None or not weight.is_initializer() or weight.const_value is None:
        return None
    scaled = any(attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta"))
    batched = any(attributes.get_int(name, 0) for name in ("transBatchA", "transBatchB"))
    transposed = attributes.get_int("transA", 0) and not (transposed_input and node.op_type == "FusedMatMul")
    return None if scaled or batched or transposed or len(weight.const_value.shape) != 2 else weight


def replace(graph: onnx_ir.Graph, node: onnx_ir.Node, weight: onnx_ir.Value, bits: int) -> None:
    """Replace `node` by MatMulNBits, and remove its matrix if no other node uses it."""
    array = matrix_of(node, weight)
    rows, columns = array.shape
    quantised, scales = quantize_matrix(array, bits)
    inputs = [
        node.inputs[0],
        constant(graph, f"{weight.name}.int{bits}", quantised),
        constant(graph, f"{weight.name}.scales", scales),
    ]
    if len(node.inputs) > 2:  # Gemm's bias, after two optional inputs: zero points and group indices
        inputs += [None, None, node.inputs[2]]
    product = onnx_ir.node(
        "MatMulNBits",
        inputs,
        {"K": rows, "N": columns, "bits": bits, "block_size": block_size(rows, bits), "accuracy_level": INT8_INPUTS},
        domain="com.microsoft",
        name=node.name,
    )
    replace_nodes_and_values(graph, node, [node], [product], node.outputs, product.outputs)
    if not weight.uses():
        graph.initializers.pop(str(weight.name))


def matrix_of(node: onnx_ir.Node, weight: onnx_ir.Value) -> NDArray[np.float32]:
    """The matrix (k, n) that a product multiplies by: `weight`, transposed if the node says so."""
    assert weight.const_value is not None, "only constants are quantised: this is a bug"
    array: NDArray[np.float32] = weight.const_value.numpy()
    return array.T if node.attributes.get_int("transB", 0) else array


def share_with_head(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Look tokens up in the quantised matrix of a tied head in int8, so that the matrix is stored once.

    This halves the size of GPT-2, and the error does not grow. A Reshape gives each operator the shape that it needs.
    """
    embedding, ids = node.inputs[:2]
    stored = graph.initializers.get(f"{embedding.name}.int8") if embedding is not None else None
    if embedding is None or embedding.shape is None or stored is None or stored.const_value is None:
        return
    width = embedding.shape[-1]
    if not isinstance(width, int) or width % block_size(width, 8):  # a block would span two rows
        return
    blocks = stored.const_value.numpy()
    flat = constant(graph, f"{embedding.name}.int8.rows", blocks.reshape(len(blocks), -1))
    shape = constant(graph, f"{embedding.name}.int8.shape", np.array(blocks.shape))
    gather = onnx_ir.node(
        "GatherBlockQuantized",
        [flat, ids, graph.initializers[f"{embedding.name}.scales"]],
        {"bits": 8, "block_size": block_size(width, 8), "gather_axis": 0, "quantize_axis": 1},
        domain="com.microsoft",
        name=node.name,
    )
    replace_nodes_and_values(graph, node, [node], [gather], node.outputs, gather.outputs)
    reshape = onnx_ir.node("Reshape", [flat, shape], name=f"{embedding.name}.int8.blocks")
    reshape.outputs[0].name = f"{embedding.name}.int8.blocks"
    stored.replace_all_uses_with(reshape.outputs[0])
    graph.insert_before(graph[0], reshape)
    graph.initializers.pop(str(stored.name))
    if not embedding.uses():
        graph.initializers.pop(str(embedding.name))


def constant(graph: onnx_ir.Graph, name: str, array: NDArray[Any]) -> onnx_ir.Value:
    """A constant of the graph, which is stored once under its name."""
    if name not in graph.initializers:
        tensor = onnx_ir.Tensor(array, name=name)
        dtype = onnx_ir.TensorType(tensor.dtype)
        graph.register_initializer(
            onnx_ir.Value(name=name, type=dtype, shape=onnx_ir.Shape(array.shape), const_value=tensor)
        )
    return graph.initializers[name]


def block_size(rows: int, bits: int) -> int:
    """The block size for columns of `rows` values: the largest that divides them, or else the smallest."""
    return next((block for block in BLOCKS[bits] if rows % block == 0), BLOCKS[bits][-1])


def quantize_matrix(matrix: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A matrix (k, n) as integers (n, blocks, bytes of a block) and scales (n, blocks)."""
    k, n = matrix.shape
    block = block_size(k, bits)
    blocks = -(-k // block)
    padded = np.ascontiguousarray(np.pad(matrix, ((0, blocks * block - k), (0, 0))))
    quantised: NDArray[np.uint8] = np.zeros((n, blocks, block * bits // 8), np.uint8)
    scales: NDArray[np.float32] = np.zeros((n, blocks), np.float32)
    # Zero points are written and not used: the quantisation is symmetric.
    zero_points: NDArray[np.uint8] = np.zeros((n, -(-blocks * bits // 8)), np.uint8)
    KERNELS[bits](quantised, padded, scales, zero_points, block, n, k, True)
    return quantised, scales
