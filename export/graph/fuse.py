"""Neighbouring nodes fused into the runtime's own, and nothing left that would keep a graph off CUDA.

By onnxscript's `ort_fusions`. Never by `onnxruntime.transformers.optimizer`, which turns a tanh-GELU into an erf-GELU.
The runtime's own level comes on top when the graph is loaded, as it depends on the provider.
"""

from collections import Counter
from typing import Any

import onnx_ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, NameFixPass
from onnxscript.rewriter import RewriteRule, rewrite
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from onnxscript.rewriter.rules.common import expand_before_binary_op_rules

from export.errors import ExportError

# They compute with shapes or choose what to run: work for the CPU in the midst of a graph on CUDA.
FORBIDDEN = ("Shape", "Size", "Range", "Loop", "If", "Scan", "NonZero", "Expand", "ConstantOfShape")


def gather_nd(op: Any, rows: Any, indices: Any) -> Any:
    """How the exporter writes `x[indices]`: with an axis added to the indices ..."""
    return op.GatherND(rows, op.Unsqueeze(indices, [-1]), batch_dims=0)


def gather(op: Any, rows: Any, indices: Any) -> Any:
    """... and the same in one node."""
    return op.Gather(rows, indices, axis=0)


rows_by_gather = RewriteRule(gather_nd, gather)


def optimize(model: onnx_ir.Model) -> onnx_ir.Model:
    """The fused graph; byte for byte the same whenever the same graph comes in."""
    NameFixPass()(model)  # the result's name may be that of a value within: torch calls words it looks up `embedding`
    rewrite(model, expand_before_binary_op_rules)  # an operator that broadcasts needs no Expand in front of it
    rewrite(model, [rows_by_gather])
    model, _ = optimize_for_ort(model)
    ClearMetadataAndDocStringPass()(model)
    check(model)
    return model


def check(model: onnx_ir.Model) -> None:
    """ExportError if a node is left that must not be."""
    found = {kind: count for kind, count in node_counts(model).items() if kind in FORBIDDEN}
    if found:
        raise ExportError(f"the graph: found {found}, expected no node of these kinds: {', '.join(FORBIDDEN)}")


def node_counts(model: onnx_ir.Model) -> dict[str, int]:
    """How many nodes of each kind, the commonest first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())
