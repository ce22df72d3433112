"""Compares a session with the exported model: runs the artifact's golden inputs in the session that will serve.

Errors are in standard deviations of all references together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.artifact import MAXIMUM, TOLERANCES
from server.arrays import Array
from server.artifact import Artifact, GoldenCase
from server.errors import BadArtifact
from server.runtime.providers import ProviderChoice
from server.runtime.session import Session


@dataclass(frozen=True, kw_only=True)
class PreprocessingParity:
    """The numbers of golden texts and images that the server encodes as transformers did; the largest pixel error."""

    texts: int = 0
    images: int = 0
    pixel_error: float = 0.0  # in grey levels, of 256


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest errors of a session against PyTorch in fp32, and the tolerance that was applied."""

    maximum: float
    root_mean_square: float
    measure: str  # the error that the tolerance applies to
    tolerance: float
    cases: int

    @property
    def error(self) -> float:
        return self.maximum if self.measure == MAXIMUM else self.root_mean_square


def check_parity(session: Session, artifact: Artifact) -> Parity:
    """Run the golden inputs and compare the outputs with PyTorch's. Raises BadArtifact if they are out of tolerance."""
    cases = artifact.golden()
    deviation = (
        float(np.std(np.concatenate([output.ravel() for case in cases for output in case.outputs.values()]))) or 1.0
    )
    errors = [error / deviation for case in cases for error in _errors(session, artifact, case)]
    measure, tolerance = tolerance_of(session, artifact)
    parity = Parity(
        maximum=max(float(np.max(error)) for error in errors),
        root_mean_square=max(float(np.sqrt(np.mean(error**2))) for error in errors),
        measure=measure,
        tolerance=tolerance,
        cases=len(cases),
    )
    if not parity.error <= tolerance:  # also if it is NaN
        raise BadArtifact(
            f"{artifact.directory}: on {session.provider} in {session.precision} the golden outputs are off: found "
            f"{measure} {parity.error:.2g} standard deviations, expected at most {tolerance:g}"
        )
    return parity


def tolerance_of(session: Session, artifact: Artifact) -> tuple[str, float]:
    """The error measure and the tolerance for the precision of the session: from the table, else from its graph."""
    if session.precision in TOLERANCES:
        return TOLERANCES[session.precision]
    graph = artifact.graph(ProviderChoice(session.provider).target, session.precision)
    return graph.parity.measure, graph.parity.tolerance


def _errors(session: Session, artifact: Artifact, case: GoldenCase) -> list[NDArray[np.float64]]:
    """The absolute errors of each output of a case, in the shape of the output."""
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
    """The inputs of a case and, for a graph with a cache, an empty cache that is just large enough."""
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
