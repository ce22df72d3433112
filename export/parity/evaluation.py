"""The user's own texts or images as cases: how far a graph is from PyTorch on what it is meant for."""

from pathlib import Path

import numpy as np

from export.graph.recipes import Arrays, BertRecipe, GptRecipe, Recipe
from export.inputs import samples
from export.parity import preparation
from protos.manifest_pb2 import Manifest

SELECTED = 64  # positions of a batch at which words are compared: a row of logits is as wide as the vocabulary


def inputs_for(recipe: Recipe, manifest: Manifest, tokenizer: str | None, path: Path) -> list[Arrays]:
    """What the file holds, as inputs of the graph. ExportError if it holds nothing of the kind."""
    if isinstance(recipe, BertRecipe | GptRecipe) and tokenizer is not None:
        encodings = preparation.encoded(tokenizer, samples.texts(path), manifest.text, path)
        return [
            selected(recipe, preparation.padded(recipe, rows, manifest.text))
            for rows in preparation.in_batches(encodings)
        ]
    pictures = [samples.picture(file) for file in samples.image_files(path)]
    starts = range(0, len(pictures), preparation.ROWS)
    return [preparation.pixels(pictures[start : start + preparation.ROWS], manifest.image) for start in starts]


def selected(recipe: BertRecipe | GptRecipe, arrays: Arrays) -> Arrays:
    """With positions spread evenly over all words, where the graph wants to be told."""
    if "selected" not in recipe.inputs("fp32"):
        return arrays
    words = np.flatnonzero(preparation.real(arrays))
    chosen = np.linspace(0, len(words) - 1, min(SELECTED, len(words))).astype(np.int64)
    return arrays | {"selected": words[chosen]}


def count(inputs: list[Arrays]) -> int:
    """How many texts or images there are."""
    return sum(len(next(iter(arrays.values()))) for arrays in inputs)
