"""How far a saved graph is from PyTorch in fp32, and whether that is within tolerance.

Errors are relative to the standard deviation of the reference, because the scale of the results differs between models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError
from export.graph.recipes import Arrays, Recipe
from export.graph.runtime import Runtime, description, with_cache
from export.parity.cases import Case
from export.precisions import Precision
from protos.artifact import MAXIMUM
from protos.manifest_pb2 import Parity as ParityMessage

# `top_scores` and `logsumexp` must agree with `logits` but for the last digit.
TOP_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Agreement:
    """Rows of logits: how many have the same best class or token, and how far their distributions are apart."""

    rows: int
    agreed: int
    divergence: float  # Kullback-Leibler, of the graph from PyTorch, in nats, summed over the rows


@dataclass(frozen=True)
class Difference:
    """One result compared with its reference: the errors, and the position of the largest."""

    what: str
    maximum: float
    root_mean_square: float
    position: tuple[int, ...]
    found: float
    expected: float
    agreement: Agreement | None = None  # of classifiers and language models

    @property
    def absolute(self) -> float:
        """The largest error, in the result's own unit."""
        return abs(self.found - self.expected)

    def __str__(self) -> str:
        return (
            f"{self.what} at {list(self.position)}: found {self.found:.6g}, PyTorch has {self.expected:.6g} "
            f"(maximum {self.maximum:.2g}, root mean square {self.root_mean_square:.2g} standard deviations)"
        )


@dataclass(frozen=True)
class Parity:
    """The largest of all differences by each measure, and the agreement over all rows."""

    precision: Precision
    maximum: float
    root_mean_square: float
    absolute: float
    cases: int
    agreement: Agreement | None

    def __str__(self) -> str:
        said = (
            f"maximum {self.maximum:.1e} ({self.absolute:.1e} absolute), root mean square {self.root_mean_square:.1e}"
        )
        if self.agreement is None:
            return said
        rows = self.agreement.rows
        return f"{said}, top-1 {self.agreement.agreed / rows:.1%}, KL {self.agreement.divergence / rows:.1e} nats"


Comparison = Callable[[str, NDArray[np.generic], NDArray[np.float32], float], Difference]


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


def difference_of_logits(
    what: str, found: NDArray[np.generic], reference: NDArray[np.float32], scale: float
) -> Difference:
    """Compare rows of logits (n, classes), and their best classes and distributions."""
    result = difference(what, found, reference, scale)
    log_found, log_reference = log_softmax(found.astype(np.float64)), log_softmax(reference.astype(np.float64))
    agreed = int(np.sum(found.argmax(axis=-1) == reference.argmax(axis=-1)))
    divergence = float(np.sum(np.exp(log_reference) * (log_reference - log_found)))
    return replace(result, agreement=Agreement(len(found), agreed, divergence))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of rows of logits."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def comparison(recipe: Recipe) -> Comparison:
    """How results of a recipe are compared: rows of several logits by their agreement, too."""
    (width,) = recipe.outputs("fp32")[recipe.result].shape[1:]
    return difference_of_logits if recipe.result == "logits" and width != 1 else difference


def deviation(cases: Iterable[Case]) -> float:
    """The standard deviation of all references together. (A single case may have a single value.)"""
    return float(np.std(np.concatenate([case.reference.ravel() for case in cases]))) or 1.0


def measure(runtime: Runtime, recipe: Recipe, precision: Precision, cases: Sequence[Case]) -> list[Difference]:
    """Run every case; one difference per case."""
    scale, compare = deviation(cases), comparison(recipe)
    differences = []
    for number, case in enumerate(cases):
        outputs = runtime.run(with_cache(recipe.inputs(precision.name), case.inputs))
        what = f"{recipe.result} of case {number} {shapes(case.inputs)}"
        differences.append(compare(what, outputs[recipe.result], case.reference, scale))
        if "top_ids" in outputs:
            check_top_tokens(what, outputs)
    return differences


def shapes(inputs: Arrays) -> str:
    """The shapes of a case, for an error text."""
    return "(" + ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items()) + ")"


def check_top_tokens(what: str, outputs: Arrays) -> None:
    """ParityError if `top_scores`, `top_ids` and `logsumexp` do not agree with `logits`."""
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
    """Combine differences. ParityError with the worst case, position and both values if it is out of tolerance."""
    worst_maximum = max(differences, key=lambda difference: difference.maximum)
    worst_mean = max(differences, key=lambda difference: difference.root_mean_square)
    by_maximum = precision.measure == MAXIMUM
    worst, error = (worst_maximum, worst_maximum.maximum) if by_maximum else (worst_mean, worst_mean.root_mean_square)
    if error > precision.tolerance:
        raise ParityError(f"{worst}; expected {precision.measure} ≤ {precision.tolerance:g} in {precision.name}")
    return combine(differences, precision)


def combine(differences: list[Difference], precision: Precision) -> Parity:
    """All differences in one, whatever the tolerance."""
    agreements = [difference.agreement for difference in differences if difference.agreement is not None]
    return Parity(
        precision,
        maximum=max(difference.maximum for difference in differences),
        root_mean_square=max(difference.root_mean_square for difference in differences),
        absolute=max(difference.absolute for difference in differences),
        cases=len(differences),
        agreement=Agreement(
            sum(agreement.rows for agreement in agreements),
            sum(agreement.agreed for agreement in agreements),
            sum(agreement.divergence for agreement in agreements),
        )
        if agreements
        else None,
    )


def message(parity: Parity) -> ParityMessage:
    """A measurement as the manifest has it."""
    result = ParityMessage(
        measured_on=description(),
        measure=parity.precision.measure,
        maximum=parity.maximum,
        root_mean_square=parity.root_mean_square,
        absolute=parity.absolute,
        tolerance=parity.precision.tolerance,
        cases=parity.cases,
    )
    if parity.agreement is not None:
        result.top1_agreement = parity.agreement.agreed / parity.agreement.rows
        result.kl_divergence = parity.agreement.divergence / parity.agreement.rows
    return result
