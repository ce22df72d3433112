"""nanoGPT's tokenizer of characters, from its `meta.pkl`.

The file is a pickle, which could run any code. Plain values need no imports, so a pickle that names one is refused.
"""

import pickle
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from export.errors import ExportError

NUMBERS = "stoi"  # nanoGPT's key of the dictionary from each character to its number
Characters = dict[str, int]


class PlainUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, texts and numbers, which need no import."""

    def find_class(self, module: str, name: str) -> Any:
        """Called for every import."""
        raise pickle.UnpicklingError(f"it imports {module}.{name}")


def tokenizer_of(numbers: Characters) -> Tokenizer:
    """The tokenizer of a model that was trained on characters."""
    tokenizer = Tokenizer(models.WordLevel(numbers))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def read(path: Path) -> Characters:
    """The number of each character. ExportError if the file has anything else."""
    try:
        with path.open("rb") as file:
            meta = PlainUnpickler(file).load()
    except Exception as error:  # a broken pickle can raise any exception
        raise ExportError(
            f"{path}: found no pickle of plain values ({error}), expected nanoGPT's {NUMBERS}; it was not run"
        ) from error
    numbers = meta.get(NUMBERS) if isinstance(meta, dict) else None
    if not isinstance(numbers, dict) or not all(
        isinstance(character, str) and len(character) == 1 and isinstance(number, int)
        for character, number in numbers.items()
    ):
        raise ExportError(f"{path}: found no {NUMBERS}, expected a dictionary from each character to its number")
    return numbers
