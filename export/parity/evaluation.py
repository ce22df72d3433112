"""The user's own texts or images (`--evaluate`) as inputs of a graph."""

from pathlib import Path

import numpy as np

from export.graph.recipes import Arrays, BertRecipe, GptRecipe, Recipe
from export.inputs import samples
from export.parity import preparation
from protos.manifest_pb2 import Manifest

SELECTED = 64  # positions of a batch whose logits are compared: a row is as wide as the vocabulary


def inputs_for(recipe: Recipe, manifest: Manifest, tokenizer: str | None, path: Path) -> list[Arrays]:
    """The texts or images of a file as inputs of the graph. ExportError if it has none."""
    if isinstance(recipe, BertRecipe | GptRecipe) and tokenizer is not None:
        encodings = preparation.encoded(tokenizer, samples.texts(path), manifest.text, path)
        return [
            with_selected(recipe, preparation.padded(recipe, rows, manifest.text))
            for rows in preparation.in_batches(encodings)
        ]
    pictures = [samples.picture(file) for file in samples.image_files(path)]
    starts = range(0, len(pictures), preparation.ROWS)
    return [preparation.pixels(pictures[start : start + preparation.ROWS], manifest.image) for start in starts]


def with_selected(recipe: BertRecipe | GptRecipe, arrays: Arrays) -> Arrays:
    """Add selected positions, spread evenly over all tokens, if the graph takes them."""
    if "selected" not in recipe.inputs("fp32"):
        return arrays
    tokens = np.flatnonzero(preparation.real(arrays))
    chosen = np.linspace(0, len(tokens) - 1, min(SELECTED, len(tokens))).astype(np.int64)
    return arrays | {"selected": tokens[chosen]}


def count(inputs: list[Arrays]) -> int:
    """The number of texts or images."""
    return sum(len(next(iter(arrays.values()))) for arrays in inputs)
