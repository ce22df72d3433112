"""How far a saved graph is from PyTorch in fp32, and whether that is near enough.

Errors are relative to the standard deviation of the reference: an absolute error means nothing without the size of what
it is an error of.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.cases import Arrays, Case
from export.errors import ParityError
from export.precisions import Precision
from export.recipes import Recipe
from export.runtime import Runtime, filled

# `top_scores` and `logsumexp` repeat what `logits` say; the last digit may differ.
TOP_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Difference:
    """One result beside its reference: the errors, and where the largest one stands."""

    what: str
    maximum: float
    root_mean_square: float
    position: tuple[int, ...]
    found: float
    expected: float

    def __str__(self) -> str:
        return (
            f"{self.what} at {list(self.position)}: found {self.found:.6g}, PyTorch has {self.expected:.6g} "
            f"(maximum {self.maximum:.2g}, root mean square {self.root_mean_square:.2g} standard deviations)"
        )


@dataclass(frozen=True)
class Parity:
    """The worst of all differences, by either measure."""

    precision: Precision
    maximum: float
    root_mean_square: float
    cases: int

    def __str__(self) -> str:
        return f"maximum {self.maximum:.1e}, root mean square {self.root_mean_square:.1e}"


def difference(what: str, found: NDArray[np.generic], reference: NDArray[np.float32], scale: float) -> Difference:
    """Compare one array. ParityError if shapes differ or anything found is not a number."""
    if found.shape != reference.shape:
        raise ParityError(f"{what}: found shape {list(found.shape)}, PyTorch has {list(reference.shape)}")
    error = np.abs(found.astype(np.float64) - reference)
    worst = tuple(int(i) for i in np.unravel_index(np.argmax(error), error.shape))  # argmax finds NaN first
    result = Difference(
        what=what,
        maximum=float(error[worst]) / scale,
        root_mean_square=float(np.sqrt(np.mean(error**2))) / scale,
        position=worst,
        found=float(found[worst]),
        expected=float(reference[worst]),
    )
    if not np.isfinite(result.maximum):
        raise ParityError(f"{result}: expected finite numbers")
    return result


def deviation(cases: Iterable[Case]) -> float:
    """The standard deviation of all that PyTorch gave. (That of a single case means little: it may hold one number.)"""
    return float(np.std(np.concatenate([case.reference.ravel() for case in cases]))) or 1.0


def measure(runtime: Runtime, recipe: Recipe, precision: Precision, cases: list[Case]) -> list[Difference]:
    """Run every case; one difference for each."""
    scale = deviation(cases)
    differences = []
    for number, case in enumerate(cases):
        outputs = runtime.run(filled(recipe.inputs(precision.name), case.inputs))
        what = f"{recipe.result} of case {number} {shapes(case.inputs)}"
        differences.append(difference(what, outputs[recipe.result], case.reference, scale))
        if "top_ids" in outputs:
            check_words(what, outputs)
    return differences


def shapes(inputs: Arrays) -> str:
    """The shapes of a case, for a reader."""
    return "(" + ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items()) + ")"


def check_words(what: str, outputs: Arrays) -> None:
    """ParityError if `top_scores`, `top_ids` and `logsumexp` do not say what `logits` say."""
    logits = outputs["logits"].astype(np.float64)  # (n, v)
    scores, ids = outputs["top_scores"], outputs["top_ids"]
    best = -np.sort(-logits, axis=-1)[:, : scores.shape[-1]]
    highest = logits.max(axis=-1)
    logsumexp = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=-1))
    for name, found, expected in (
        ("top_scores", scores, best),
        ("top_ids", np.take_along_axis(logits, ids.astype(np.int64), axis=-1), best),
        ("logsumexp", outputs["logsumexp"], logsumexp),
    ):
        if not np.allclose(found, expected, rtol=TOP_TOLERANCE, atol=TOP_TOLERANCE):
            raise ParityError(f"{name} beside {what}: it does not agree with the logits of the same run")


def judge(differences: list[Difference], precision: Precision) -> Parity:
    """ParityError with the worst tensor, position and both values if it is out of tolerance."""
    worst_maximum = max(differences, key=lambda difference: difference.maximum)
    worst_mean = max(differences, key=lambda difference: difference.root_mean_square)
    by_maximum = precision.measure == "maximum"
    worst, error = (worst_maximum, worst_maximum.maximum) if by_maximum else (worst_mean, worst_mean.root_mean_square)
    if error > precision.tolerance:
        raise ParityError(f"{worst}; expected {precision.measure} ≤ {precision.tolerance:g} in {precision.name}")
    return Parity(precision, worst_maximum.maximum, worst_mean.root_mean_square, len(differences))
