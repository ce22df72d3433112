"""Is what will serve what was exported? Runs an artifact's golden inputs on the very session that will answer requests.

Errors are relative to the standard deviation of all the references together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.artifact import MAXIMUM, TOLERANCES
from server.arrays import Array
from server.artifact import Artifact, GoldenCase
from server.errors import BadArtifact
from server.runtime.session import Session


@dataclass(frozen=True, kw_only=True)
class GoldenInputs:
    """How many golden texts and images the server read as transformers did, and the largest error of a pixel."""

    texts: int = 0
    images: int = 0
    pixel_error: float = 0.0  # in grey levels, of 256


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How far the session is from PyTorch in fp32, the worst case counting, and what it was held to."""

    maximum: float
    root_mean_square: float
    measure: str  # which of the two the tolerance bounds
    tolerance: float
    cases: int

    @property
    def error(self) -> float:
        return self.maximum if self.measure == MAXIMUM else self.root_mean_square


def measure(session: Session, artifact: Artifact) -> Measured:
    """Run the golden inputs and compare; BadArtifact if the session does not give what PyTorch gave."""
    cases = artifact.golden()
    deviation = (
        float(np.std(np.concatenate([output.ravel() for case in cases for output in case.outputs.values()]))) or 1.0
    )
    errors = [error / deviation for case in cases for error in _errors(session, artifact, case)]
    tolerated, tolerance = tolerance_of(session, artifact)
    measured = Measured(
        maximum=max(float(np.max(error)) for error in errors),
        root_mean_square=max(float(np.sqrt(np.mean(error**2))) for error in errors),
        measure=tolerated,
        tolerance=tolerance,
        cases=len(cases),
    )
    if not measured.error <= tolerance:  # a NaN is in no tolerance
        raise BadArtifact(
            f"{artifact.directory}: on {session.provider} in {session.precision} the golden outputs are off: found "
            f"{tolerated} {measured.error:.2g} standard deviations, expected at most {tolerance:g}"
        )
    return measured


def tolerance_of(session: Session, artifact: Artifact) -> tuple[str, float]:
    """By the precision that really computes; of one that is not in the table, what the exporter settled."""
    if session.precision in TOLERANCES:
        return TOLERANCES[session.precision]
    for graph in artifact.manifest.graphs:
        if graph.precision == session.precision:
            return graph.parity.measure, graph.parity.tolerance
    raise BadArtifact(f"{artifact.directory}: found no tolerance for precision {session.precision}")


def _errors(session: Session, artifact: Artifact, case: GoldenCase) -> list[NDArray[np.float64]]:
    """The absolute error of each reference of a case."""
    found = session.run(_feeds(session, artifact, case.inputs), list(case.outputs))
    errors = []
    for name, expected in case.outputs.items():
        if found[name].shape != expected.shape:
            raise BadArtifact(
                f"{artifact.directory}: found {name} of shape {found[name].shape}, expected {expected.shape}"
            )
        errors.append(np.abs(found[name].astype(np.float64) - expected.astype(np.float64)))
    return errors


def _feeds(session: Session, artifact: Artifact, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of a case and, for a graph with a cache, an empty one that is just large enough."""
    feeds = dict(inputs)
    if not artifact.manifest.HasField("cache"):
        return feeds
    cache = artifact.manifest.cache
    rows, length = feeds["input_ids"].shape
    feeds.setdefault("total_sequence_length", np.array([length], np.int32))
    for name in session.input_names:
        if name.startswith("past_"):
            feeds[name] = np.zeros((rows, cache.heads, length, cache.head_width), session.input_types[name])
    return feeds
