"""From texts and pictures to a graph's inputs, as the server prepares them: tokens padded on the right, pixels."""

from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Encoding, Tokenizer

from export.errors import ExportError
from export.graph.recipes import Arrays, BertRecipe, GptRecipe
from export.inputs.images.steps import pixel_values
from models.checkpoints.layout import PAD_POSITION
from protos.manifest_pb2 import ImageInput, TextInput

ROWS = 8


def encoded(tokenizer: str, texts: Sequence[str], text: TextInput, path: Path) -> list[Encoding]:
    """The tokens of each text of a file, truncated to the model's length.

    ExportError if the tokenizer cannot encode a text, or has a token that the model does not know.
    """
    reader = Tokenizer.from_str(tokenizer)
    reader.encode_special_tokens = text.split_special_tokens
    reader.enable_truncation(text.max_length, direction=text.truncation_side)
    try:
        found = [encoding for encoding in reader.encode_batch(list(texts)) if encoding.ids]
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ExportError(
            f"{path}: found a character that the tokenizer has no token for ({error}), "
            "expected only characters that the model knows"
        ) from error
    for encoding in found:
        for token, token_id in zip(encoding.tokens, encoding.ids, strict=True):
            if token_id >= text.vocabulary:
                known = f"the ids 0 to {text.vocabulary - 1}, as the model has them"
                raise ExportError(f"{path}: found the token {token!r} (id {token_id}), expected {known}")
    if not found:
        raise ExportError(f"{path}: found no tokens in its texts, expected some")
    return found


def in_batches(encodings: Sequence[Encoding], max_tokens: float = inf) -> Iterator[Sequence[Encoding]]:
    """Batches of at most 8 rows and `max_tokens` tokens, the shortest rows first, which needs the least padding."""
    ordered = sorted(encodings, key=len)
    while ordered:
        rows = min(ROWS, len(ordered))
        while rows > 1 and rows * len(ordered[rows - 1]) > max_tokens:
            rows -= 1
        yield ordered[:rows]
        ordered = ordered[rows:]


def padded(recipe: BertRecipe | GptRecipe, rows: Sequence[Encoding], text: TextInput) -> Arrays:
    """Rows of different lengths as the inputs of a graph, without `selected`."""
    lengths: NDArray[np.int32] = np.array([len(row) for row in rows], np.int32)
    real = np.arange(lengths.max()) < lengths[:, None]  # (b, t)
    input_ids: NDArray[np.int64] = np.zeros(real.shape, np.int64)  # no token looks at padding
    input_ids[real] = np.concatenate([row.ids for row in rows])
    arrays: Arrays = {
        "input_ids": input_ids,
        "position_ids": positions(recipe, input_ids, real),
        "lengths": lengths,
    }
    if "token_type_ids" in recipe.inputs("fp32"):
        segments = np.zeros_like(input_ids)
        if text.token_types:
            segments[real] = np.concatenate([row.type_ids for row in rows])
        arrays["token_type_ids"] = segments
    return arrays


def positions(
    recipe: BertRecipe | GptRecipe, input_ids: NDArray[np.int64], real: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The position of each token, (b, t). RoBERTa's padding tokens within a text have a position of their own."""
    columns: NDArray[np.int64] = np.tile(np.arange(real.shape[1]), (len(real), 1))
    if not getattr(recipe.config, "pad_position", False):
        return columns
    padding = input_ids == PAD_POSITION
    counted: NDArray[np.int64] = np.cumsum(~padding, axis=1) - 1
    return np.where(real, np.where(padding, recipe.config.positions, counted), columns)


def real(arrays: Arrays) -> NDArray[np.bool_]:
    """Whether each column of a batch of texts has a real token, (b, t)."""
    lengths = arrays["lengths"].astype(np.int64)
    result: NDArray[np.bool_] = np.arange(arrays["input_ids"].shape[1]) < lengths[:, None]
    return result


def pixels(pictures: Sequence[Image.Image], image: ImageInput) -> Arrays:
    """Pictures in RGB as `pixel_values` (b, channels, h, w). ExportError if the steps do not give the model's size."""
    return {"pixel_values": np.stack([pixel_values(picture, image) for picture in pictures])}
