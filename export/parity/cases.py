"""Seeded inputs to compare a graph on: different batch sizes and lengths, padding, several selected positions.

The padding has random tokens, too, so that a graph that attends to padding fails the comparison.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from export.graph.recipes import Arrays, BertRecipe, GptRecipe, Recipe

GOLDEN = 3  # cases in the artifact: the first ones, which are small
# Rows, and the share of the maximum length. The last two are the extremes: one token, and the maximum length.
TEXT_SHAPES = ((2, 0.05), (1, 0.03), (4, 0.02), (3, 0.1), (8, 0.05), (5, 0.1), (1, 0.0), (1, 1.0))
IMAGE_ROWS = (2, 1, 3, 8)
SELECTED = 4  # maximum of a case: a row of logits is as wide as the vocabulary
MIN_LENGTH = 5
PADDING_SHARE = 0.1  # of RoBERTa's tokens: they are padding tokens within a text


@dataclass(frozen=True)
class Case:
    """Inputs of a graph, without caches, and PyTorch's result in fp32."""

    inputs: Arrays
    reference: NDArray[np.float32]


def inputs_for(recipe: Recipe, max_length: int, seed: int = 0) -> list[Arrays]:
    """Inputs for `recipe` by a seed; `max_length` is in tokens, for texts."""
    random = np.random.default_rng(seed)
    if isinstance(recipe, BertRecipe | GptRecipe):
        return [text_inputs(recipe, rows, length_of(share, rows, max_length), random) for rows, share in TEXT_SHAPES]
    (port,) = recipe.inputs("fp32").values()
    return [{"pixel_values": random.standard_normal(port.sized({"batch": n}), np.float32)} for n in IMAGE_ROWS]


def length_of(share: float, rows: int, max_length: int) -> int:
    """A share of the maximum length in tokens, but enough for rows of different lengths; 1 for a share of 0."""
    return min(max_length, max(MIN_LENGTH + rows, round(share * max_length))) if share else 1


def text_inputs(recipe: BertRecipe | GptRecipe, rows: int, length: int, random: np.random.Generator) -> Arrays:
    """Random tokens: the first row has `length` tokens, the others have at most as many and padding on the right."""
    shape = (rows, length)
    lengths = random.integers(1, length, rows, np.int32, endpoint=True)
    lengths[0] = length
    arrays: Arrays = {
        "input_ids": random.integers(0, recipe.config.vocabulary, shape),
        "position_ids": np.tile(np.arange(length), (rows, 1)),
        "lengths": lengths,
    }
    if getattr(recipe.config, "pad_position", False):  # some tokens are padding tokens within the text
        padding = random.random(shape) < PADDING_SHARE
        arrays["position_ids"] = np.where(padding, recipe.config.positions, np.cumsum(~padding, axis=1) - 1)
    names = recipe.inputs("fp32")
    if "token_type_ids" in names:
        segments = getattr(recipe.config, "segments", 0)
        arrays["token_type_ids"] = np.sort(random.integers(0, segments, shape), axis=1)
    if "selected" in names:
        real = np.flatnonzero(np.arange(length) < lengths[:, None])  # flat positions of real tokens
        arrays["selected"] = np.sort(random.permutation(real)[:SELECTED])
    return arrays


def golden(cases: list[Case]) -> list[Case]:
    """The cases that the server runs on its provider before it serves the model."""
    return cases[:GOLDEN]
