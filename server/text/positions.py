"""The positions of tokens, for models that do not number all of them."""

import numpy as np
from numpy.typing import NDArray

from protos.manifest_pb2 import TextInput


def positions(input_ids: NDArray[np.int64], text: TextInput) -> NDArray[np.int64] | None:
    """The positions (t,) of the tokens of a text; None if they are 0, 1, 2, …

    RoBERTa does not number padding tokens within a text: all of them have the same reserved position.
    """
    if not text.HasField("pad_position"):
        return None
    padding = input_ids == text.pad_position_id
    if not padding.any():
        return None
    counted: NDArray[np.int64] = np.cumsum(~padding) - 1
    return np.where(padding, text.pad_position, counted)
