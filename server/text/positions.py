"""Where the tokens of a text stand, for models that do not count all of them."""

import numpy as np
from numpy.typing import NDArray

from protos.manifest_pb2 import TextInput


def positions(input_ids: NDArray[np.int64], text: TextInput) -> NDArray[np.int64] | None:
    """The positions of tokens (t) that are not 0, 1, 2, …; None if they are.

    RoBERTa does not count padding tokens that stand within a text: all of them have one position of their own.
    """
    padding = input_ids == text.pad_position_id
    if not text.HasField("pad_position") or not padding.any():
        return None
    counted: NDArray[np.int64] = np.cumsum(~padding) - 1
    return np.where(padding, text.pad_position, counted)
