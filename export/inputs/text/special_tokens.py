"""Which tokens begin and end a generated text, from `generation_config.json`, `config.json` or the tokenizer.

Ids for which the model has no row can neither be given to it nor come out of it: they are left out with a remark.
"""

from pathlib import Path

from export.errors import ExportError
from export.sources.json_files import read_json
from export.sources.layout import GENERATION_CONFIG
from export.sources.modules import CONFIG

Found = tuple[str, list[int]]  # where it was said, and the ids


def end_ids(model: Path | None, of_tokenizer: int | None, vocabulary: int) -> tuple[list[int], list[str]]:
    """Every token that ends a text, and remarks for the user. ExportError if a file holds anything but ids."""
    where, ids = said(model, "eos_token_id", of_tokenizer)
    return [token for token in ids if token < vocabulary], dropped(where, ids, vocabulary)


def begin_id(model: Path | None, of_tokenizer: int | None, vocabulary: int) -> tuple[int | None, list[str]]:
    """The token with which an empty prompt begins, or None, and remarks for the user. ExportError as above."""
    where, ids = said(model, "bos_token_id", of_tokenizer)
    known = [token for token in ids if token < vocabulary]
    return (known[0] if known else None), dropped(where, ids, vocabulary)


def said(model: Path | None, key: str, of_tokenizer: int | None) -> Found:
    """The ids of the first place that gives any."""
    for name in (GENERATION_CONFIG, CONFIG) if model else ():
        assert model is not None, "no file without a directory: this is a bug"
        found = read_json(model / name).get(key)
        if found is not None:
            return f"{name}: {key}", checked(f"{name}: {key}", found)
    return f"tokenizer: {key}", [] if of_tokenizer is None else [of_tokenizer]


def checked(where: str, found: object) -> list[int]:
    """One id or a list of them."""
    ids = found if isinstance(found, list) else [found]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise ExportError(f"{where}: found {found!r}, expected a token id, or a list of them")
    return list(dict.fromkeys(ids))


def dropped(where: str, ids: list[int], vocabulary: int) -> list[str]:
    """A remark on ids that the model does not have."""
    outside = [token for token in ids if token >= vocabulary]
    if not outside:
        return []
    return [f"{where}: {', '.join(map(str, outside))} left out, the model has the ids 0 to {vocabulary - 1}"]
