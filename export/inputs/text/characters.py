"""A tokenizer that reads letter by letter, from the `meta.pkl` of nanoGPT.

It is a pickle, which could run any code. Plain values need none: whatever asks for more is refused before it runs.
"""

import pickle
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from export.errors import ExportError

NUMBERS = "stoi"  # the number of each letter, as nanoGPT calls it
Letters = dict[str, int]


class PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numbers, which a pickle holds without naming anything to import."""

    def find_class(self, module: str, name: str) -> Any:
        """Called for everything else."""
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def tokenizer_of(numbers: Letters) -> Tokenizer:
    """The tokenizer of a model that was trained on letters."""
    tokenizer = Tokenizer(models.WordLevel(numbers))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def read(path: Path) -> Letters:
    """Each letter's number. ExportError if the file says anything else."""
    try:
        with path.open("rb") as file:
            meta = PlainUnpickler(file).load()
    except Exception as error:  # a broken pickle raises whatever it pleases
        raise ExportError(
            f"{path}: found no pickle of plain values ({error}), expected nanoGPT's {NUMBERS}; it was not run"
        ) from error
    numbers = meta.get(NUMBERS) if isinstance(meta, dict) else None
    if not isinstance(numbers, dict) or not all(
        isinstance(letter, str) and len(letter) == 1 and isinstance(number, int) for letter, number in numbers.items()
    ):
        raise ExportError(f"{path}: found no {NUMBERS}, expected a dictionary from each letter to its number")
    return numbers
