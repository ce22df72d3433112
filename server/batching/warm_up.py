"""Runs every bucketed shape once before the model serves requests: providers compile for a shape on first use.

The largest shape runs first, so that the device memory is allocated in one piece, or its lack is found early.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from server.artifact import Artifact
from server.batching.collate import ImageItem, Item, TextItem, collate
from server.batching.scheduler import Budget
from server.batching.worker import out_of_memory
from server.concurrency.stop_signal import StopSignal
from server.runtime.session import Session

MAX_SECONDS = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WarmUp:
    """How many of the shapes were run, and how long it took."""

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
    """Run a batch of each bucketed shape of the budget, or as many as `MAX_SECONDS` allows.

    Skips batches of several items for which there is not enough memory: the batcher runs those in halves. Raises
    NotReady after a stop.
    """
    begun, done, stop = clock(), 0, stop or StopSignal()
    shapes = sorted(_shapes(budget), key=lambda shape: shape[0] * shape[1], reverse=True)
    for count, length in shapes:
        stop.check()
        if clock() - begun > MAX_SECONDS:
            break
        items = [_item(session, artifact, length)] * count
        try:
            session.run(collate(items, session.input_names, budget.shapes), items[0].outputs)
        except Exception as error:
            if count == 1 or not out_of_memory(error):
                raise
            log.warning("%s: not enough memory to warm up %d items of length %d", artifact.name, count, length)
        else:
            done += 1
    return WarmUp(done, len(shapes), clock() - begun)


def _shapes(budget: Budget) -> Iterator[tuple[int, int]]:
    """Batch size and length (1 for images) of each shape that fits the budget."""
    steps = budget.shapes
    if steps.lengths or steps.batch_sizes:
        for count in steps.batch_sizes or (1,):
            for length in steps.lengths or (1,):
                if count == 1 or count * length <= budget.tokens:
                    yield count, length


def _item(session: Session, artifact: Artifact, length: int) -> Item:
    """An input of zeros, with one logit position. Fetches only the last output, which is the smallest."""
    outputs = session.output_names[-1:]
    if artifact.manifest.HasField("image"):
        image = artifact.manifest.image
        return ImageItem(pixel_values=np.zeros((3, image.height, image.width), np.float32), outputs=outputs)
    selected = np.zeros(1 if "selected" in session.input_names else 0, np.int64)
    return TextItem(input_ids=np.zeros(length, np.int64), selected=selected, outputs=outputs)
