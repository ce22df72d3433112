"""Fuse neighbouring nodes into the runtime's operators, and check that no node would keep a graph off CUDA.

The fusions are onnxscript's `ort_fusions`. Do not use `onnxruntime.transformers.optimizer`: it turns a tanh-GELU into
an erf-GELU. The runtime applies its own optimisation level when it loads a graph, because that depends on the provider.
"""

from collections import Counter
from typing import Any

import onnx_ir
from onnx_ir.convenience import replace_nodes_and_values
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass
from onnxscript.rewriter import RewriteRule, rewrite
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from onnxscript.rewriter.rules.common import expand_before_binary_op_rules

from export.errors import ExportError

# These operators compute with shapes or control the flow: in a graph on CUDA they run on the CPU.
FORBIDDEN = ("Shape", "Size", "Range", "Loop", "If", "Scan", "NonZero", "Expand", "ConstantOfShape")
SUM = 3  # the output of SkipLayerNormalization that has the sum


def gather_nd(op: Any, rows: Any, indices: Any) -> Any:
    """How torch's exporter writes `x[indices]`: with an axis added to the indices ..."""
    return op.GatherND(rows, op.Unsqueeze(indices, [-1]), batch_dims=0)


def gather(op: Any, rows: Any, indices: Any) -> Any:
    """... and the same in one node."""
    return op.Gather(rows, indices, axis=0)


rows_by_gather = RewriteRule(gather_nd, gather)


def optimize(model: onnx_ir.Model) -> onnx_ir.Model:
    """The fused graph. The same input always gives the same bytes."""
    NameFixPass()(model)  # an output may have the name of an inner value: torch calls an embedding lookup `embedding`
    rewrite(model, expand_before_binary_op_rules)  # an operator that broadcasts needs no Expand before it
    rewrite(model, [rows_by_gather])
    model, _ = optimize_for_ort(model)
    ClearMetadataAndDocStringPass()(model)
    check(model)
    return model


def split_slow_fusions(model: onnx_ir.Model) -> onnx_ir.Model:
    """The graph of an encoder for CPUs, without the fused operators that are slower there than their parts.

    SkipLayerNormalization becomes Sum and LayerNormalization: 2.0 and 0.7 ms for 1,024 rows of 768 values. BiasGelu
    becomes Sum and Gelu: 3.6 and 2.7 ms for 1,024 rows of 3,072 values (EPYC with AVX512-VNNI, 2 cores and 1 core, 26
    November 2026). The runtime would fuse Add again, but not Sum.
    """
    for node in list(model.graph):
        if node.op_type == "SkipLayerNormalization":
            split_skip_norm(model.graph, node)
        elif node.op_type == "BiasGelu":
            added = onnx_ir.node("Sum", node.inputs, name=f"{node.name}.sum")
            added.outputs[0].name = f"{node.outputs[0].name}.sum"
            gelu = onnx_ir.node("Gelu", added.outputs, domain="com.microsoft", name=node.name)
            replace_nodes_and_values(model.graph, node, [node], [added, gelu], node.outputs, gelu.outputs)
    return model


def split_skip_norm(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    """Replace a SkipLayerNormalization by Sum and LayerNormalization."""
    x, skip, scale, shift, *bias = node.inputs
    added = onnx_ir.node("Sum", [x, skip, *bias], name=f"{node.name}.sum")
    added.outputs[0].name = f"{node.outputs[0].name}.sum"
    attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float()}
    normalised = onnx_ir.node("LayerNormalization", [added.outputs[0], scale, shift], attributes, name=node.name)
    olds, news = [node.outputs[0]], [normalised.outputs[0]]
    if len(node.outputs) > SUM:
        olds, news = [*olds, node.outputs[SUM]], [*news, added.outputs[0]]
    replace_nodes_and_values(graph, node, [node], [added, normalised], olds, news)


def check(model: onnx_ir.Model) -> None:
    """ExportError if a forbidden node is left."""
    found = {kind: count for kind, count in node_counts(model).items() if kind in FORBIDDEN}
    if found:
        raise ExportError(f"the graph: found {found}, expected no node of these kinds: {', '.join(FORBIDDEN)}")


def node_counts(model: onnx_ir.Model) -> dict[str, int]:
    """The number of nodes of each kind, the most frequent kind first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())
