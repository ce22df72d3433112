"""The machines a graph can be made for, the numbers it can compute in, and how near to PyTorch each must come."""

from dataclasses import dataclass

from export.errors import ExportError


@dataclass(frozen=True)
class Precision:
    """`measure` says which error `tolerance` bounds; both errors are relative to the reference's standard deviation."""

    name: str
    datatype: str  # of a float tensor inside the graph, as the Open Inference Protocol spells it
    measure: str
    tolerance: float


PRECISIONS = {
    # Strict enough to catch an erf-GELU in place of a tanh-GELU, which moves GPT-2's logits by 8e-4.
    "fp32": Precision("fp32", "FP32", "maximum", 1e-4),
    # The largest error of half precision varies too much between models to say anything.
    "fp16": Precision("fp16", "FP16", "root-mean-square", 0.015),
}
# For each kind of machine the precisions it can run, its default first.
TARGETS = {
    "cpu": ("fp32",),  # ONNX Runtime's CPU provider has no kernels for half precision
    "cuda": ("fp16", "fp32"),
}
DEFAULT = "cpu=fp32,cuda=fp16"


def parse(text: str) -> dict[str, Precision]:
    """`cpu=fp32,cuda` → the precision of each target, in the order given. ExportError says what is not understood."""
    targets: dict[str, Precision] = {}
    for part in text.split(","):
        target, _, precision = part.strip().partition("=")
        if target not in TARGETS:
            raise ExportError(f"--target: found {target!r}, expected one of {', '.join(TARGETS)}")
        precision = precision or TARGETS[target][0]
        if precision not in TARGETS[target]:
            raise ExportError(f"--target {target}: found {precision!r}, expected one of {', '.join(TARGETS[target])}")
        if target in targets:
            raise ExportError(f"--target: found {target} twice, expected each target once")
        targets[target] = PRECISIONS[precision]
    return targets


def spell(targets: dict[str, Precision]) -> str:
    """The inverse of `parse`, with nothing left to defaults."""
    return ",".join(f"{target}={precision.name}" for target, precision in targets.items())
