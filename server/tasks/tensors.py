"""Tensor tasks of encoders and vision models: from token ids or pixels to the outputs of the network.

The inputs run in the same batches as those of the tasks. The padding of a request is removed before the run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from server.admission.queue import RequestContext
from server.arrays import Array
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import ImageItem, Outputs, TextItem
from server.batching.queue import Reservation
from server.errors import InvalidRequest
from server.tasks.embed import normalised
from server.text.positions import positions

MAX_RESPONSE_LOGITS = 1 << 26  # numbers in one response: 256 MiB


class RawText:
    """`input_ids` (n, t), optional `attention_mask` and `token_type_ids`, all INT64 → `logits` or `embedding`, FP32.

    Fill-mask models return `logits` (n, t, v), zeros at padding; classifiers (n, c); embedders `embedding` (n, d).
    """

    def __init__(self, artifact: Artifact, batcher: Batcher) -> None:
        self.text = artifact.manifest.text
        self.per_token = artifact.manifest.task == "fill-mask"
        self.output = "embedding" if artifact.manifest.task == "embed" else "logits"
        self.normalise = artifact.manifest.normalise
        self._batcher = batcher

    async def __call__(self, inputs: Mapping[str, Array], *, context: RequestContext) -> dict[str, Array]:
        ids = read_ids(inputs, max_length=self.text.max_length)
        if self.per_token:
            check_size(ids, self.text.vocabulary)
        async with self._batcher.reserve(len(ids), context, field="input_ids") as reservation:
            items = self._items(ids, inputs)
            if self.per_token:
                return {self.output: await self._logits(items, ids.shape, reservation)}
            output = np.stack([answer[self.output] for answer in await self._batcher.run(items, reservation)])
        return {self.output: normalised(output) if self.normalise else output}

    async def _logits(self, items: Sequence[TextItem], shape: tuple[int, ...], reservation: Reservation) -> Array:
        """The logits (n, t, v). The threads that run the batches copy the logits of each item into the array."""
        logits = np.zeros((*shape, self.text.vocabulary), np.float32)
        copying = [replace(item, keep=partial(_copy_logits, out)) for item, out in zip(items, logits, strict=True)]
        await self._batcher.run(copying, reservation)
        return logits

    def _items(self, ids: NDArray[np.int64], inputs: Mapping[str, Array]) -> list[TextItem]:
        lengths = read_lengths(ids, inputs, vocabulary=self.text.vocabulary)
        segments = read_segments(ids, lengths, inputs, segments=self.text.segments)
        return [
            TextItem(
                input_ids=row[:length],
                token_type_ids=None if segments is None else segments[number, :length],
                position_ids=positions(row[:length], self.text),
                selected=np.arange(length) if self.per_token else np.zeros(0, np.int64),
                outputs=(self.output,),
            )
            for number, (row, length) in enumerate(zip(ids, lengths, strict=True))
        ]


class RawImage:
    """`pixel_values` (n, 3, h, w), FP32, normalised as the checkpoint expects → `logits` (n, c), FP32."""

    def __init__(self, artifact: Artifact, batcher: Batcher) -> None:
        self.shape = (3, artifact.manifest.image.height, artifact.manifest.image.width)
        self._batcher = batcher

    async def __call__(self, inputs: Mapping[str, Array], *, context: RequestContext) -> dict[str, Array]:
        pixels = inputs["pixel_values"]
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != self.shape or not len(pixels):
            expected = f"float32 of shape [n, {', '.join(map(str, self.shape))}], n at least 1"
            raise InvalidRequest("pixel_values", f"{pixels.dtype} of shape {list(pixels.shape)}", expected)
        async with self._batcher.reserve(len(pixels), context, field="pixel_values") as reservation:
            if not np.isfinite(pixels).all():
                raise InvalidRequest("pixel_values", "values that are not finite", "finite numbers")
            items = [ImageItem(pixel_values=image, outputs=("logits",)) for image in pixels.astype("f4", copy=False)]
            answers = await self._batcher.run(items, reservation)
        return {"logits": np.stack([answer["logits"] for answer in answers])}


def _copy_logits(target: Array, outputs: Outputs) -> Outputs:
    """Copy the logits of an item into the result of its request, and keep no other outputs."""
    target[: len(outputs["logits"])] = outputs["logits"]
    return {}


def read_ids(inputs: Mapping[str, Array], *, max_length: int) -> NDArray[np.int64]:
    """Token ids (n, t), checked by type and shape only. Raises InvalidRequest."""
    ids = _integers("input_ids", inputs["input_ids"])
    if ids.shape[1] > max_length:
        raise InvalidRequest("input_ids", f"{ids.shape[1]} tokens in a row", f"at most {max_length}")
    return ids


def read_lengths(ids: NDArray[np.int64], inputs: Mapping[str, Array], *, vocabulary: int) -> NDArray[np.int64]:
    """The length of each row (n,). InvalidRequest for a mask that is not right-padded, or an id that does not exist."""
    mask = _integers("attention_mask", inputs["attention_mask"], ids.shape) if "attention_mask" in inputs else None
    lengths = np.full(len(ids), ids.shape[1]) if mask is None else _lengths(mask)
    _check_range("input_ids", ids, lengths, vocabulary)
    return lengths


def read_segments(
    ids: NDArray[np.int64], lengths: NDArray[np.int64], inputs: Mapping[str, Array], *, segments: int
) -> NDArray[np.int64] | None:
    """Token types (n, t), or None if there are none in the request. Raises InvalidRequest."""
    if "token_type_ids" not in inputs:
        return None
    if not segments:
        raise InvalidRequest("token_type_ids", "a tensor", "none: the model has no segments")
    types = _integers("token_type_ids", inputs["token_type_ids"], ids.shape)
    _check_range("token_type_ids", types, lengths, segments)
    return types


def check_size(ids: NDArray[np.int64], vocabulary: int) -> None:
    """Raise InvalidRequest for ids (n, t) whose logits would need too much memory."""
    if ids.size * vocabulary > MAX_RESPONSE_LOGITS:
        found = f"{len(ids)} x {ids.shape[1]} tokens of {vocabulary} logits each"
        raise InvalidRequest("input_ids", found, f"at most {MAX_RESPONSE_LOGITS // vocabulary} tokens in a request")


def _integers(field: str, array: Array, shape: tuple[int, ...] | None = None) -> NDArray[np.int64]:
    if array.dtype != np.int64 or array.ndim != 2 or not array.size or (shape and array.shape != shape):
        expected = f"shape {list(shape)}" if shape else "shape [n, t], neither of them 0"
        raise InvalidRequest(field, f"{array.dtype} of shape {list(array.shape)}", f"int64 of {expected}")
    return array.astype(np.int64, copy=False)


def _lengths(mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of leading ones of each row. InvalidRequest if there are ones after a zero."""
    lengths = np.asarray((mask == 1).sum(axis=1))
    right = (np.arange(mask.shape[1]) < lengths[:, None]).astype(np.int64)
    for number in np.flatnonzero((mask != right).any(axis=1) | (lengths == 0)):
        raise InvalidRequest(
            f"attention_mask[{number}]", str(mask[number].tolist())[:80], "ones, then zeros: right-padded"
        )
    return lengths


def _check_range(field: str, ids: NDArray[np.int64], lengths: NDArray[np.int64], bound: int) -> None:
    """InvalidRequest for an id that is not below the bound. Ids in the padding may have any value."""
    real = np.arange(ids.shape[1]) < lengths[:, None]
    for row, column in np.argwhere(real & ((ids < 0) | (ids >= bound))):
        raise InvalidRequest(f"{field}[{row}, {column}]", str(ids[row, column]), f"0 to {bound - 1}")
