"""Seeded inputs to try a graph on: different batch sizes and lengths, padding, several masks.

What stands in the padding is as random as the rest, so that a graph that looks at it is found out.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.graph.recipes import Arrays, BertRecipe, GptRecipe, Recipe

GOLDEN = 3  # how many of the cases travel with the artifact; the first ones, which are small
# Rows and the share of the longest length. At the end the extremes: one token, and as many as there can be.
TEXT_SHAPES = ((2, 0.05), (1, 0.03), (4, 0.02), (3, 0.1), (8, 0.05), (5, 0.1), (1, 0.0), (1, 1.0))
IMAGE_ROWS = (2, 1, 3, 8)
SELECTED = 4  # at most so many positions of a case: a row of logits is as wide as the vocabulary
LEAST_LENGTH = 5
PADDING_SHARE = 0.1  # of RoBERTa's tokens, which stand at the position of padding tokens


@dataclass(frozen=True)
class Case:
    """Inputs of a graph, without caches, and what PyTorch made of them in fp32."""

    inputs: Arrays
    reference: NDArray[np.float32]


def inputs_for(recipe: Recipe, max_length: int, seed: int = 0) -> list[Arrays]:
    """Inputs for `recipe`, always the same for the same seed; `max_length` in tokens, for texts."""
    random = np.random.default_rng(seed)
    if isinstance(recipe, BertRecipe | GptRecipe):
        return [text(recipe, rows, length_of(share, rows, max_length), random) for rows, share in TEXT_SHAPES]
    (port,) = recipe.inputs("fp32").values()
    return [{"pixel_values": random.standard_normal(port.sized({"batch": n}), np.float32)} for n in IMAGE_ROWS]


def length_of(share: float, rows: int, max_length: int) -> int:
    """A share of the longest length, in tokens, but enough for rows of different lengths; 0 stands for a single one."""
    return min(max_length, max(LEAST_LENGTH + rows, round(share * max_length))) if share else 1


def text(recipe: BertRecipe | GptRecipe, rows: int, length: int, random: np.random.Generator) -> Arrays:
    """Random words in `rows` rows, the first `length` long, the others at most so, padded on the right."""
    shape = (rows, length)
    lengths = random.integers(1, length, rows, np.int32, endpoint=True)
    lengths[0] = length
    arrays: Arrays = {
        "input_ids": random.integers(0, recipe.config.vocabulary, shape),
        "position_ids": np.tile(np.arange(length), (rows, 1)),
        "lengths": lengths,
    }
    if getattr(recipe.config, "pad_position", False):  # as if some of the tokens were padding tokens in the text
        padding = random.random(shape) < PADDING_SHARE
        arrays["position_ids"] = np.where(padding, recipe.config.positions, np.cumsum(~padding, axis=1) - 1)
    names = recipe.inputs("fp32")
    if "token_type_ids" in names:
        segments = getattr(recipe.config, "segments", 0)
        arrays["token_type_ids"] = np.sort(random.integers(0, segments, shape), axis=1)
    if "selected" in names:
        real = np.flatnonzero(np.arange(length) < lengths[:, None])  # flat positions that hold a word
        arrays["selected"] = np.sort(random.permutation(real)[:SELECTED])
    return arrays


def golden(cases: list[Case]) -> list[Case]:
    """The cases by which a server checks the very provider that it serves with."""
    return cases[:GOLDEN]
