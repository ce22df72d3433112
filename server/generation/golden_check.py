"""Compares decoding from the cache with the golden logits, which the exported model computed for whole texts.

The golden texts are decoded as the engine decodes: prompts in chunks, then one decode step of different lengths.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from protos.artifact import MAXIMUM
from server.arrays import Floats, Ids
from server.artifact import Artifact, GoldenCase
from server.errors import BadArtifact
from server.generation.open import make_decoder, make_layout, make_memory
from server.runtime.golden_check import tolerance_of
from server.runtime.session import Session

CHUNK_TOKENS = 3


def check_decoding(session: Session, artifact: Artifact, *, device: int = 0) -> float:
    """The error of decoding the golden texts, in standard deviations of the reference. BadArtifact if too large."""
    found, expected = replay(session, artifact.golden(), device=device)
    errors = np.abs(found - expected) / (expected.std() or 1.0)
    measure, tolerance = tolerance_of(session, artifact)
    error = float(errors.max() if measure == MAXIMUM else np.sqrt(np.mean(errors**2)))
    if not error <= tolerance:
        raise BadArtifact(
            f"{artifact.directory}: on {session.provider} in {session.precision} decoding step by step is off: found "
            f"{measure} {error:.2g} standard deviations, expected at most {tolerance:g}"
        )
    return error


def replay(session: Session, cases: Sequence[GoldenCase], *, device: int = 0) -> tuple[Floats, Floats]:
    """The logits (n, vocabulary) of decoding, and the expected ones, at the last positions of the n golden texts.

    The texts of all cases decode together in one step.
    """
    texts, expected = zip(*(pair for case in cases for pair in _last_positions(case)), strict=True)
    layout = make_layout(session, slots=len(texts), max_slots=len(texts), capacity=max(map(len, texts)))
    decoder = make_decoder(session, layout, make_memory(session, device_id=device))
    for slot, text in enumerate(texts):
        for start in range(0, len(text) - 1, CHUNK_TOKENS):
            decoder.prefill(slot, text[: len(text) - 1][start : start + CHUNK_TOKENS], start)
    lengths = np.array([len(text) for text in texts], np.int32)
    scores = decoder.decode(np.array([text[-1] for text in texts]), lengths)
    found = scores.logits(range(len(texts)))
    decoder.release()
    return found, np.stack(expected)


def _last_positions(case: GoldenCase) -> list[tuple[Ids, Floats]]:
    """The tokens (t,) of each row up to the last position with golden logits, and these logits (vocabulary,)."""
    ids, logits = case.inputs["input_ids"], case.outputs["logits"]
    last: dict[int, tuple[NDArray[np.int64], Floats]] = {}
    for position, expected in zip(case.inputs["selected"].tolist(), logits, strict=True):
        row, column = divmod(position, ids.shape[1])
        text = ids[row, : column + 1].astype(np.int64)
        if row not in last or len(text) > len(last[row][0]):
            last[row] = text, expected.astype(np.float32)
    return list(last.values())
