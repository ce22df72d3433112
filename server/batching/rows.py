"""One input of an encoder or a vision model, ready to run; how several become a batch, and its answers single again.

Padding stands on the right, and only here: nobody else pads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.arrays import Array

Outputs = dict[str, Array]
NO_COLUMNS: NDArray[np.int64] = np.zeros(0, np.int64)
PIXELS_PER_TOKEN = 16 * 16  # an image costs about what a text of as many words costs as it has patches


@dataclass(frozen=True, eq=False, kw_only=True)
class TextRow:
    """A text as tokens (t), INT64, special ones included, and which outputs are wanted for it."""

    input_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    token_type_ids: NDArray[np.int64] | None = None  # (t); zeros if None
    selected: NDArray[np.int64] = field(default_factory=lambda: NO_COLUMNS)  # (s) columns that the language head is for

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def heads(self) -> int:
        """At how many positions the language head is computed for it."""
        return len(self.selected)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageRow:
    """An image as (3, h, w), FP32, normalised, and which outputs are wanted for it."""

    pixel_values: NDArray[np.float32]
    outputs: tuple[str, ...]
    heads = 0

    @property
    def tokens(self) -> int:
        return max(1, int(self.pixel_values[0].size) // PIXELS_PER_TOKEN)


Row = TextRow | ImageRow


def collate(rows: Sequence[Row], input_names: Sequence[str]) -> Outputs:
    """The feeds of one run: those of the graph's inputs that rows of this kind have. All rows are of one kind."""
    texts = [row for row in rows if isinstance(row, TextRow)]
    images = [row.pixel_values for row in rows if isinstance(row, ImageRow)]
    assert not (texts and images), "texts and images in one batch; this is a bug"
    feeds: Outputs = _collate_texts(texts) if texts else {"pixel_values": np.stack(images)}  # (b, 3, h, w)
    return {name: feeds[name] for name in input_names}


def _collate_texts(rows: Sequence[TextRow]) -> Outputs:
    lengths = np.array([row.tokens for row in rows], np.int32)
    longest = int(lengths.max())
    input_ids = np.zeros((len(rows), longest), np.int64)
    token_type_ids = np.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : row.tokens] = row.input_ids
        if row.token_type_ids is not None:
            token_type_ids[number, : row.tokens] = row.token_type_ids
    return {
        "input_ids": input_ids,  # (b, t)
        "token_type_ids": token_type_ids,
        "position_ids": np.broadcast_to(np.arange(longest), input_ids.shape).copy(),
        "lengths": lengths,  # (b)
        "selected": np.concatenate([number * longest + row.selected for number, row in enumerate(rows)]),  # (Σ s)
    }


def wanted(rows: Sequence[Row]) -> tuple[str, ...]:
    """The outputs that at least one of the rows wants."""
    return tuple(dict.fromkeys(name for row in rows for name in row.outputs))


def split(outputs: Mapping[str, Array], rows: Sequence[Row]) -> list[Outputs]:
    """For each row the outputs it wants: its part (s, …) of what was computed at selected positions, else its line.

    The parts are views: they hold the whole batch's memory until the caller lets go of them.
    """
    ends = np.cumsum([row.heads for row in rows])
    by_position = bool(ends[-1])
    return [
        {name: outputs[name][end - row.heads : end] if by_position else outputs[name][number] for name in row.outputs}
        for number, (row, end) in enumerate(zip(rows, ends, strict=True))
    ]
