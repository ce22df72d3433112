"""Runs every shape once before requests come: a provider prepares itself for a shape when it first sees it.

The largest is first: then the device's memory is taken at once and in one piece, or it is known now that it is short.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from server.artifact import Artifact
from server.batching.collate import ImageRow, Row, TextRow, collate
from server.batching.scheduler import Budget
from server.batching.worker import out_of_memory
from server.concurrency.stop_signal import StopSignal
from server.runtime.session import Session

LONGEST_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmUp:
    """What was run of what there is, in seconds."""

    shapes: int
    of: int
    seconds: float


def warm_up(
    session: Session,
    artifact: Artifact,
    budget: Budget,
    *,
    stop: StopSignal | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> WarmUp:
    """Run batches of all shapes of the budget that have steps, or as many as `LONGEST_S` allows.

    Shapes of several rows for which there is no memory are left out: the batcher runs them in halves. NotReady after a
    stop.
    """
    begun, done, stop = clock(), 0, stop or StopSignal()
    shapes = sorted(_shapes(budget), key=lambda shape: shape[0] * shape[1], reverse=True)
    for count, length in shapes:
        stop.check()
        if clock() - begun > LONGEST_S:
            break
        rows = [_row(session, artifact, length)] * count
        try:
            session.run(collate(rows, session.input_names, budget.shapes), rows[0].outputs)
        except Exception as error:
            if count == 1 or not out_of_memory(error):
                raise
            log.warning("%s: no memory to warm up %d rows of length %d", artifact.name, count, length)
        else:
            done += 1
    return WarmUp(done, len(shapes), clock() - begun)


def _shapes(budget: Budget) -> Iterator[tuple[int, int]]:
    """Rows and length (1 for images, which have no other) of each shape that fits the budget."""
    steps = budget.shapes
    if steps.lengths or steps.row_counts:
        for count in steps.row_counts or (1,):
            for length in steps.lengths or (1,):
                if count == 1 or count * length <= budget.tokens:
                    yield count, length


def _row(session: Session, artifact: Artifact, length: int) -> Row:
    """An input of nothing, for which the head is computed once. Of the outputs the smallest is fetched."""
    outputs = session.output_names[-1:]
    if artifact.manifest.HasField("image"):
        image = artifact.manifest.image
        return ImageRow(pixel_values=np.zeros((3, image.height, image.width), np.float32), outputs=outputs)
    selected = np.zeros(1 if "selected" in session.input_names else 0, np.int64)
    return TextRow(input_ids=np.zeros(length, np.int64), selected=selected, outputs=outputs)
