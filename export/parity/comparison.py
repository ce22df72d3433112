"""How far a saved graph is from PyTorch in fp32, and whether that is near enough.

Errors are relative to the standard deviation of the reference: an absolute error means nothing without the size of what
it is an error of.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from export.errors import ParityError
from export.graph.recipes import Arrays, Recipe
from export.graph.runtime import Runtime, described, filled
from export.parity.cases import Case
from export.precisions import Precision
from protos.artifact import MAXIMUM
from protos.manifest_pb2 import Parity as ParityMessage

# `top_scores` and `logsumexp` repeat what `logits` say; the last digit may differ.
TOP_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Choices:
    """What rows of logits come to: how many have the same best class or word, and how far their distributions are."""

    rows: int
    agreed: int
    divergence: float  # Kullback and Leibler's, of the graph from PyTorch, in nats, the sum over the rows


@dataclass(frozen=True)
class Difference:
    """One result beside its reference: the errors, and where the largest one stands."""

    what: str
    maximum: float
    root_mean_square: float
    position: tuple[int, ...]
    found: float
    expected: float
    choices: Choices | None = None  # of classifiers and language models

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
    """The worst of all differences, by either measure, and of what is chosen the whole."""

    precision: Precision
    maximum: float
    root_mean_square: float
    absolute: float
    cases: int
    choices: Choices | None

    def __str__(self) -> str:
        said = (
            f"maximum {self.maximum:.1e} ({self.absolute:.1e} absolute), root mean square {self.root_mean_square:.1e}"
        )
        if self.choices is None:
            return said
        agreed, divergence = self.choices.agreed / self.choices.rows, self.choices.divergence / self.choices.rows
        return f"{said}, top-1 {agreed:.1%}, KL {divergence:.1e} nats"


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
    """Compare rows of logits (n, classes), and what they come to."""
    result = difference(what, found, reference, scale)
    log_found, log_reference = log_softmax(found.astype(np.float64)), log_softmax(reference.astype(np.float64))
    agreed = int(np.sum(found.argmax(axis=-1) == reference.argmax(axis=-1)))
    divergence = float(np.sum(np.exp(log_reference) * (log_reference - log_found)))
    return replace(result, choices=Choices(len(found), agreed, divergence))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-probabilities of rows of logits."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return result


def comparison(recipe: Recipe) -> Comparison:
    """How results of a recipe are compared: a single number, or a vector, is no choice."""
    (width,) = recipe.outputs("fp32")[recipe.result].shape[1:]
    return difference_of_logits if recipe.result == "logits" and width != 1 else difference


def deviation(cases: Iterable[Case]) -> float:
    """The standard deviation of all that PyTorch gave. (That of a single case means little: it may hold one number.)"""
    return float(np.std(np.concatenate([case.reference.ravel() for case in cases]))) or 1.0


def measure(runtime: Runtime, recipe: Recipe, precision: Precision, cases: Sequence[Case]) -> list[Difference]:
    """Run every case; one difference for each."""
    scale, compare = deviation(cases), comparison(recipe)
    differences = []
    for number, case in enumerate(cases):
        outputs = runtime.run(filled(recipe.inputs(precision.name), case.inputs))
        what = f"{recipe.result} of case {number} {shapes(case.inputs)}"
        differences.append(compare(what, outputs[recipe.result], case.reference, scale))
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
    by_maximum = precision.measure == MAXIMUM
    worst, error = (worst_maximum, worst_maximum.maximum) if by_maximum else (worst_mean, worst_mean.root_mean_square)
    if error > precision.tolerance:
        raise ParityError(f"{worst}; expected {precision.measure} ≤ {precision.tolerance:g} in {precision.name}")
    return summed(differences, precision)


def summed(differences: list[Difference], precision: Precision) -> Parity:
    """All differences in one."""
    chosen = [difference.choices for difference in differences if difference.choices is not None]
    return Parity(
        precision,
        maximum=max(difference.maximum for difference in differences),
        root_mean_square=max(difference.root_mean_square for difference in differences),
        absolute=max(difference.absolute for difference in differences),
        cases=len(differences),
        choices=Choices(
            sum(choices.rows for choices in chosen),
            sum(choices.agreed for choices in chosen),
            sum(choices.divergence for choices in chosen),
        )
        if chosen
        else None,
    )


def message(parity: Parity) -> ParityMessage:
    """The same for the manifest."""
    result = ParityMessage(
        measured_on=described(),
        measure=parity.precision.measure,
        maximum=parity.maximum,
        root_mean_square=parity.root_mean_square,
        absolute=parity.absolute,
        tolerance=parity.precision.tolerance,
        cases=parity.cases,
    )
    if parity.choices is not None:
        result.top1_agreement = parity.choices.agreed / parity.choices.rows
        result.kl_divergence = parity.choices.divergence / parity.choices.rows
    return result
