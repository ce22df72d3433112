"""Builds a batch from the inputs of an encoder or a vision model, and splits its outputs by item.

This is the only module that pads. Padding is on the right.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from server.arrays import Array
from server.batching.shape_buckets import EXACT, Shapes

Outputs = dict[str, Array]
Keep = Callable[[Outputs], Outputs]
NO_POSITIONS: NDArray[np.int64] = np.zeros(0, np.int64)
PIXELS_PER_TOKEN = 16 * 16  # an image costs about as much as a text with one token per patch


def everything(outputs: Outputs) -> Outputs:
    """The `Keep` of items whose outputs are small."""
    return outputs


@dataclass(frozen=True, eq=False, kw_only=True)
class TextItem:
    """A text as token ids (t), INT64, with special tokens, and the names of the outputs it needs.

    The outputs of an item are views that keep the outputs of the whole batch alive. Where they are as wide as the
    vocabulary, `keep` reduces them to what the caller needs, in the thread that ran the batch.
    """

    input_ids: NDArray[np.int64]
    outputs: tuple[str, ...]
    keep: Keep = everything
    token_type_ids: NDArray[np.int64] | None = None  # (t); zeros if None
    position_ids: NDArray[np.int64] | None = None  # (t); 0, 1, 2, … if None
    selected: NDArray[np.int64] = field(default_factory=lambda: NO_POSITIONS)  # (s) where the language head runs

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def logit_positions(self) -> int:
        """The number of positions at which the language head runs."""
        return len(self.selected)


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageItem:
    """An image (3, h, w), FP32, normalised, and the names of the outputs it needs."""

    pixel_values: NDArray[np.float32]
    outputs: tuple[str, ...]
    keep: Keep = everything
    logit_positions = 0

    @property
    def tokens(self) -> int:
        return max(1, int(self.pixel_values[0].size) // PIXELS_PER_TOKEN)


Item = TextItem | ImageItem


def collate(items: Sequence[Item], input_names: Sequence[str], shapes: Shapes = EXACT) -> Outputs:
    """The feeds of one batch, by input name of the graph. All items are of one kind."""
    texts = [item for item in items if isinstance(item, TextItem)]
    images = [item for item in items if isinstance(item, ImageItem)]
    assert not (texts and images), "texts and images in one batch; this is a bug"
    feeds = _collate_texts(texts, shapes) if texts else _collate_images(images, shapes)
    return {name: feeds[name] for name in input_names}


def _collate_texts(items: Sequence[TextItem], shapes: Shapes) -> Outputs:
    count, longest = shapes.batch_size(len(items)), shapes.length(max(item.tokens for item in items))
    lengths = np.ones(count, np.int32)  # also for the rows that pad the batch: a softmax over no positions is undefined
    input_ids = np.zeros((count, longest), np.int64)
    token_type_ids = np.zeros_like(input_ids)
    position_ids = np.tile(np.arange(longest), (count, 1))
    selected = np.zeros(shapes.logit_count(sum(item.logit_positions for item in items)), np.int64)
    logit_positions = 0
    for number, item in enumerate(items):
        lengths[number] = item.tokens
        input_ids[number, : item.tokens] = item.input_ids
        if item.token_type_ids is not None:
            token_type_ids[number, : item.tokens] = item.token_type_ids
        if item.position_ids is not None:
            position_ids[number, : item.tokens] = item.position_ids
        selected[logit_positions : logit_positions + item.logit_positions] = number * longest + item.selected
        logit_positions += item.logit_positions
    return {
        "input_ids": input_ids,  # (b, t)
        "token_type_ids": token_type_ids,
        "position_ids": position_ids,
        "lengths": lengths,  # (b)
        "selected": selected,  # (Σ s)
    }


def _collate_images(items: Sequence[ImageItem], shapes: Shapes) -> Outputs:
    first = items[0].pixel_values
    pixel_values = np.empty((shapes.batch_size(len(items)), *first.shape), first.dtype)  # (b, 3, h, w)
    for number, item in enumerate(items):
        pixel_values[number] = item.pixel_values
    pixel_values[len(items) :] = 0
    return {"pixel_values": pixel_values}


def wanted(items: Sequence[Item]) -> tuple[str, ...]:
    """The outputs that at least one item needs."""
    return tuple(dict.fromkeys(name for item in items for name in item.outputs))


def split(outputs: Mapping[str, Array], items: Sequence[Item]) -> list[Outputs]:
    """Split the outputs of a batch by item: by selected positions (s, …) if there are any, else by row.

    The rows that pad the batch come last and are dropped.
    """
    ends = np.cumsum([item.logit_positions for item in items])
    by_position = bool(ends[-1])
    return [
        item.keep(
            {
                name: outputs[name][end - item.logit_positions : end] if by_position else outputs[name][number]
                for name in item.outputs
            }
        )
        for number, (item, end) in enumerate(zip(items, ends, strict=True))
    ]
