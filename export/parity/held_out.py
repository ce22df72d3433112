"""The score of a model on the held-out sample beside its checkpoint, to measure the cost of quantisation.

`held-out.txt` has a text on each line, `held-out.safetensors` has `images` (n, h, w), grey, and their `labels` (n).
A row of logits is as wide as the vocabulary, so batches and the chunks that are counted have few rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tokenizers import Encoding, Tokenizer

from export.errors import ExportError
from export.graph.recipes import Arrays, BertRecipe, GptRecipe, ImageRecipe, Recipe
from export.inputs import samples
from export.parity import preparation
from export.parity.comparison import log_softmax
from protos.manifest_pb2 import Manifest

TEXTS, IMAGES = "held-out.txt", "held-out.safetensors"
MASKED_SHARE, GUESSES = 0.15, 5
MAX_LINES = 512  # of the file: the first ones are used
MAX_BATCH_TOKENS = 1024  # of GPT, which predicts each: 200 MB of logits with the 50,257 tokens of GPT-2
CHUNK_ROWS = 64  # rows of logits in double precision at a time
Logits = NDArray[np.generic]
Targets = NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Batches of inputs with the target of each row of logits. The score is the sum of `count` divided by `units`."""

    measure: str
    batches: list[tuple[Arrays, Targets]]
    count: Callable[[Logits, Targets], float]
    units: int

    def score(self, answer: Callable[[Arrays], Logits]) -> float:
        """The score of the model that `answer` runs."""
        return sum(self.count_in_chunks(answer(inputs), targets) for inputs, targets in self.batches) / self.units

    def count_in_chunks(self, logits: Logits, targets: Targets) -> float:
        """The count of a batch."""
        parts = (slice(start, start + CHUNK_ROWS) for start in range(0, len(targets), CHUNK_ROWS))
        return sum(self.count(logits[part], targets[part]) for part in parts)


def read(directory: Path, recipe: Recipe, manifest: Manifest, tokenizer: str | None) -> Sample | None:
    """The sample beside a checkpoint; None if there is none for this task. ExportError if it cannot be read."""
    path = directory / (IMAGES if isinstance(recipe, ImageRecipe) else TEXTS)
    if not path.is_file():
        return None
    sample = sample_for(path, recipe, manifest, tokenizer)
    if sample is not None and not sample.units:
        raise ExportError(f"{path}: found nothing to count, expected texts of several words, or images")
    return sample


def sample_for(path: Path, recipe: Recipe, manifest: Manifest, tokenizer: str | None) -> Sample | None:
    """The sample in a file; None if the task has no score."""
    if tokenizer is None:
        return image_sample(read_images(path), manifest)
    encodings = preparation.encoded(tokenizer, samples.texts(path, MAX_LINES), manifest.text, path)
    if isinstance(recipe, GptRecipe):
        return language_sample(recipe, manifest, encodings, Tokenizer.from_str(tokenizer))
    if isinstance(recipe, BertRecipe) and recipe.task == "fill-mask":
        return masked_sample(recipe, manifest, encodings)
    return None


def read_images(path: Path) -> Arrays:
    """`images` and their `labels`."""
    expected = "expected images, uint8 (n, h, w), and their labels, whole numbers (n)"
    try:
        arrays: Arrays = load_file(path)
    except SafetensorError as error:
        raise ExportError(f"{path}: found no safetensors file ({error}), {expected}") from error
    found = {name: f"{array.dtype} {list(array.shape)}" for name, array in arrays.items()}
    pictures, labels = arrays.get("images"), arrays.get("labels")
    if (
        pictures is None
        or labels is None
        or (pictures.dtype.name, pictures.ndim) != ("uint8", 3)
        or (labels.dtype.kind, labels.shape) not in (("i", pictures.shape[:1]), ("u", pictures.shape[:1]))
    ):
        raise ExportError(f"{path}: found {found}, {expected}")
    return arrays


def image_sample(arrays: Arrays, manifest: Manifest) -> Sample:
    """The accuracy of an image classifier."""
    labels = arrays["labels"].astype(np.int64)
    pictures = [Image.fromarray(image).convert("RGB") for image in arrays["images"]]
    starts = range(0, len(pictures), preparation.ROWS)
    batches = [
        (preparation.pixels(pictures[i : i + preparation.ROWS], manifest.image), labels[i : i + preparation.ROWS])
        for i in starts
    ]
    return Sample("accuracy", batches, correct, len(labels))


def correct(logits: Logits, targets: Targets) -> float:
    return float(np.sum(logits.argmax(axis=-1) == targets))


def language_sample(recipe: GptRecipe, manifest: Manifest, encodings: list[Encoding], tokenizer: Tokenizer) -> Sample:
    """The bits per character that a language model needs to encode the texts, without the first token of each."""
    batches = []
    for rows in preparation.in_batches([encoding for encoding in encodings if len(encoding) > 1], MAX_BATCH_TOKENS):
        arrays = preparation.padded(recipe, rows, manifest.text)
        followed = preparation.real(arrays)[:, 1:]  # tokens that another one follows
        selected = np.flatnonzero(np.pad(followed, ((0, 0), (0, 1))))
        batches.append((arrays | {"selected": selected}, arrays["input_ids"].astype(np.int64).ravel()[selected + 1]))
    characters = sum(len(text) for text in tokenizer.decode_batch([encoding.ids[1:] for encoding in encodings]))
    return Sample("bits per character", batches, bits, characters)


def bits(logits: Logits, targets: Targets) -> float:
    chosen = np.take_along_axis(log_softmax(logits.astype(np.float64)), targets[:, None], axis=-1)
    return float(-chosen.sum() / np.log(2))


def masked_sample(recipe: BertRecipe, manifest: Manifest, encodings: list[Encoding], seed: int = 0) -> Sample:
    """The share of masked tokens that are among the most likely tokens of a model for fill-mask."""
    random, batches = np.random.default_rng(seed), []
    for rows in preparation.in_batches(encodings):
        arrays = preparation.padded(recipe, rows, manifest.text)
        ids: NDArray[np.int64] = arrays["input_ids"].astype(np.int64).ravel()
        special = np.ones(arrays["input_ids"].shape, bool)
        for row, encoding in enumerate(rows):
            special[row, : len(encoding)] = encoding.special_tokens_mask
        tokens = np.flatnonzero(~special)
        selected = np.sort(random.permutation(tokens)[: max(1, round(MASKED_SHARE * len(tokens)))])
        hidden = ids.copy()
        hidden[selected] = manifest.text.mask_id
        inputs = arrays | {"input_ids": hidden.reshape(special.shape), "selected": selected}
        batches.append((inputs, ids[selected]))
    name = f"masked tokens among the first {GUESSES} guesses"
    return Sample(name, batches, among_first, sum(len(targets) for _, targets in batches))


def among_first(logits: Logits, targets: Targets) -> float:
    best = np.argpartition(-logits.astype(np.float64), GUESSES, axis=-1)[:, :GUESSES]
    return float(np.sum(best == targets[:, None]))
