"""One input of an encoder or a vision model, ready to run; how several become a batch, and its answers single again.

Padding stands on the right, and only here: nobody else pads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.arrays import Array
from server.batching.shape_buckets import EXACT, Shapes

Outputs = dict[str, Array]
Keep = Callable[[Outputs], Outputs]
NO_COLUMNS: NDArray[np.int64] = np.zeros(0, np.int64)
PIXELS_PER_TOKEN = 16 * 16  # an image costs about what a text of as many words costs as it has patches


def everything(outputs: Outputs) -> Outputs:
    """The `Keep` of rows whose outputs are small."""
    return outputs


@dataclass(frozen=True, eq=False, kw_only=True)
class TextRow:
    """A text as tokens (t), INT64, special ones included, and which outputs are wanted for it.

    The outputs of a row are views, and hold those of its whole batch. Where they are as wide as the vocabulary, `keep`
    makes of them what its caller will need, in the thread that ran the batch: a request may have thousands of batches.
    """

    input_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    keep: Keep = everything
    token_type_ids: NDArray[np.int64] | None = None  # (t); zeros if None
    position_ids: NDArray[np.int64] | None = None  # (t); 0, 1, 2, … if None
    selected: NDArray[np.int64] = field(default_factory=lambda: NO_COLUMNS)  # (s) columns that the language head is for

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def logit_positions(self) -> int:
        """At how many positions the language head is computed for it."""
        return len(self.selected)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageRow:
    """An image as (3, h, w), FP32, normalised, and which outputs are wanted for it."""

    pixel_values: NDArray[np.float32]
    outputs: tuple[str, ...]
    keep: Keep = everything
    logit_positions = 0

    @property
    def tokens(self) -> int:
        return max(1, int(self.pixel_values[0].size) // PIXELS_PER_TOKEN)


Row = TextRow | ImageRow


def collate(rows: Sequence[Row], input_names: Sequence[str], shapes: Shapes = EXACT) -> Outputs:
    """The feeds of one run: those of the graph's inputs that rows of this kind have. All rows are of one kind."""
    texts = [row for row in rows if isinstance(row, TextRow)]
    images = [row for row in rows if isinstance(row, ImageRow)]
    assert not (texts and images), "texts and images in one batch; this is a bug"
    feeds = _collate_texts(texts, shapes) if texts else _collate_images(images, shapes)
    return {name: feeds[name] for name in input_names}


def _collate_texts(rows: Sequence[TextRow], shapes: Shapes) -> Outputs:
    count, longest = shapes.row_count(len(rows)), shapes.length(max(row.tokens for row in rows))
    lengths = np.ones(count, np.int32)  # of rows that nobody asked for, too: over nothing there is no softmax
    input_ids = np.zeros((count, longest), np.int64)
    token_type_ids = np.zeros_like(input_ids)
    position_ids = np.tile(np.arange(longest), (count, 1))
    selected = np.zeros(shapes.logit_count(sum(row.logit_positions for row in rows)), np.int64)
    logit_positions = 0
    for number, row in enumerate(rows):
        lengths[number] = row.tokens
        input_ids[number, : row.tokens] = row.input_ids
        if row.token_type_ids is not None:
            token_type_ids[number, : row.tokens] = row.token_type_ids
        if row.position_ids is not None:
            position_ids[number, : row.tokens] = row.position_ids
        selected[logit_positions : logit_positions + row.logit_positions] = number * longest + row.selected
        logit_positions += row.logit_positions
    return {
        "input_ids": input_ids,  # (b, t)
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "lengths": lengths,  # (b)
        "selected": selected,  # (Σ s)
    }


def _collate_images(rows: Sequence[ImageRow], shapes: Shapes) -> Outputs:
    first = rows[0].pixel_values
    pixel_values = np.empty((shapes.row_count(len(rows)), *first.shape), first.dtype)  # (b, 3, h, w)
    for number, row in enumerate(rows):
        pixel_values[number] = row.pixel_values
    pixel_values[len(rows) :] = 0
    return {"pixel_values": pixel_values}


def wanted(rows: Sequence[Row]) -> tuple[str, ...]:
    """The outputs that at least one of the rows wants."""
    return tuple(dict.fromkeys(name for row in rows for name in row.outputs))


def split(outputs: Mapping[str, Array], rows: Sequence[Row]) -> list[Outputs]:
    """For each row what it keeps of its part (s, …) of what was computed at selected positions, else of its line.

    What shapes were filled up with comes last, and is nobody's.
    """
    ends = np.cumsum([row.logit_positions for row in rows])
    by_position = bool(ends[-1])
    return [
        row.keep(
            {
                name: outputs[name][end - row.logit_positions : end] if by_position else outputs[name][number]
                for name in row.outputs
            }
        )
        for number, (row, end) in enumerate(zip(rows, ends, strict=True))
    ]
