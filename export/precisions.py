"""Targets (the machines that graphs are exported for), precisions, and the tolerance of each precision."""

from dataclasses import dataclass, replace

from export.errors import ExportError
from protos.artifact import ROOT_MEAN_SQUARE, TOLERANCES

BITS = {"fp32": None, "int8": 8, "int4": 4}  # of a value of a matrix; None: it is not quantised


@dataclass(frozen=True)
class Precision:
    """`measure` says which error `tolerance` bounds; both errors are relative to the reference's standard deviation.

    In a quantised precision, matrices are stored as `weights`, those of the head as `head`, the rest as `datatype`.
    `activations` are the inputs of the products, except in the head; without it, the precision is weight-only. `cache`
    is the type of GPT's keys and values, if it is not `datatype`.
    """

    name: str
    datatype: str  # of a float tensor inside the graph, as the Open Inference Protocol spells it
    measure: str
    tolerance: float
    weights: str = ""
    head: str = ""
    activations: str = ""
    cache: str = ""


PRECISIONS = {
    "fp32": Precision("fp32", "FP32", *TOLERANCES["fp32"]),
    "fp16": Precision("fp16", "FP16", *TOLERANCES["fp16"]),
    # The cost of quantisation depends on the model, and the user judges it (--tolerance). These bounds are 4 times and
    # twice the error of tiny models with random weights and of the bundled models; a wrong graph has an error of 1. A
    # head in int8 has nearly the same error as one in fp32, and the head holds a third of GPT-2's weights.
    "int8-weights": Precision("int8-weights", "FP32", ROOT_MEAN_SQUARE, 0.1, weights="int8", head="int8"),
    "int4-weights": Precision("int4-weights", "FP32", ROOT_MEAN_SQUARE, 0.5, weights="int4", head="int8"),
    "int8-dynamic": Precision(
        "int8-dynamic", "FP32", ROOT_MEAN_SQUARE, 0.1, weights="int8", head="int8", activations="int8"
    ),
}
# The precisions that GPT may have with keys and values in int8. With weights in fp32, this costs an error of 0.009 or
# less in tiny models with random weights, and of 0.006 in the bundled model.
CACHED = ("fp32", "int8-weights", "int4-weights", "int8-dynamic")
PRECISIONS |= {
    f"{name}+int8-kv": replace(
        PRECISIONS[name],
        name=f"{name}+int8-kv",
        measure=ROOT_MEAN_SQUARE,
        tolerance=max(0.1, PRECISIONS[name].tolerance),
        weights=PRECISIONS[name].weights or "fp32",
        head=PRECISIONS[name].head or "fp32",
        cache="int8",
    )
    for name in CACHED
}
# The target and the precision of each graph to export. The first graph of a target is its default.
Targets = list[tuple[str, Precision]]
# The precisions of each target, the default first.
TARGETS = {
    # ONNX Runtime's CPU provider has no kernels for half precision.
    "cpu": (*CACHED, *(f"{name}+int8-kv" for name in CACHED)),
    "cuda": ("fp16", "fp32"),
}
DEFAULT = "cpu=fp32,cuda=fp16"


def parse(text: str, *, head: str | None = None, tolerance: float | None = None) -> Targets:
    """`cpu=fp32,cpu=int8-weights,cuda` → the targets and precisions, in the order given. ExportError if it is invalid.

    `head` and `tolerance` replace the defaults of the quantised precisions.
    """
    targets: Targets = []
    for part in text.split(","):
        target, _, precision = part.strip().partition("=")
        if target not in TARGETS:
            raise ExportError(f"--target: found {target!r}, expected one of {', '.join(TARGETS)}")
        precision = precision or TARGETS[target][0]
        if precision not in TARGETS[target]:
            raise ExportError(f"--target {target}: found {precision!r}, expected one of {', '.join(TARGETS[target])}")
        if any((target, precision) == (other, chosen.name) for other, chosen in targets):
            raise ExportError(f"--target: found {target}={precision} twice, expected each precision of a target once")
        targets.append((target, adjusted(PRECISIONS[precision], head, tolerance)))
    if (head or tolerance is not None) and not any(precision.weights for _, precision in targets):
        raise ExportError(f"--head-precision, --tolerance: found --target {text}, expected a quantised precision in it")
    return targets


def adjusted(precision: Precision, head: str | None, tolerance: float | None) -> Precision:
    """A quantised precision with the user's choices; other precisions have none."""
    if not precision.weights:
        return precision
    if tolerance is not None and not 0 < tolerance < float("inf"):
        raise ExportError(f"--tolerance: found {tolerance:g}, expected a number of standard deviations above 0")
    bound = precision.tolerance if tolerance is None else tolerance
    return replace(precision, head=head or precision.head, tolerance=bound)


def spell(targets: Targets) -> str:
    """The argument of `parse`, with all defaults written out."""
    return ",".join(f"{target}={spelled(precision)}" for target, precision in targets)


def ordered(targets: Targets) -> Targets:
    """The same in the order of the manifest: all graphs of a target together, its default first."""
    return sorted(targets, key=lambda chosen: list(TARGETS).index(chosen[0]))


def spelled(precision: Precision) -> str:
    """One precision with the user's choices."""
    chosen = f" (head {precision.head}, tolerance {precision.tolerance:g})" if precision.weights else ""
    return f"{precision.name}{chosen}"
