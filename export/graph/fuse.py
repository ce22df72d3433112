"""Fuse neighbouring nodes into the runtime's operators, and check that no node would keep a graph off CUDA.

The fusions are onnxscript's `ort_fusions`. Do not use `onnxruntime.transformers.optimizer`: it turns a tanh-GELU into
an erf-GELU. The runtime applies its own optimisation level when it loads a graph, because that depends on the provider.
"""

from collections import Counter
from typing import Any

import onnx_ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass
from onnxscript.rewriter import RewriteRule, rewrite
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from onnxscript.rewriter.rules.common import expand_before_binary_op_rules

from export.errors import ExportError

# These operators compute with shapes or control the flow: in a graph on CUDA they run on the CPU.
FORBIDDEN = ("Shape", "Size", "Range", "Loop", "If", "Scan", "NonZero", "Expand", "ConstantOfShape")


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


def check(model: onnx_ir.Model) -> None:
    """ExportError if a forbidden node is left."""
    found = {kind: count for kind, count in node_counts(model).items() if kind in FORBIDDEN}
    if found:
        raise ExportError(f"the graph: found {found}, expected no node of these kinds: {', '.join(FORBIDDEN)}")


def node_counts(model: onnx_ir.Model) -> dict[str, int]:
    """The number of nodes of each kind, the most frequent kind first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())
