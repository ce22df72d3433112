"""The tokens that begin and end a generated text, from `generation_config.json`, `config.json` or the tokenizer.

Ids that the model has no row for are left out with a remark. So are the settings by which `generate` of transformers
samples tokens: on the server, each request has its own.
"""

from pathlib import Path

from export.errors import ExportError
from export.sources.json_files import read_json
from export.sources.layout import GENERATION_CONFIG
from export.sources.modules import CONFIG

Found = tuple[str, list[int]]  # file and key, and the ids
# Keys of generation_config.json that change which tokens are generated, with the values that have no effect.
SAMPLING: dict[str, object] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "top_h": None,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "force_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "max_length": 20,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "exponential_decay_length_penalty": None,
    "stop_strings": None,
    "num_beams": 1,
    "penalty_alpha": 0.0,
    "dola_layers": None,
    "guidance_scale": 1.0,
    "token_healing": False,
    "watermarking_config": None,
}


def end_ids(model: Path | None, of_tokenizer: int | None, vocabulary: int) -> tuple[list[int], list[str]]:
    """All tokens that end a text, and remarks for the user. ExportError if a file has anything but ids."""
    where, ids = first_ids(model, "eos_token_id", of_tokenizer)
    return [token for token in ids if token < vocabulary], dropped(where, ids, vocabulary)


def begin_id(model: Path | None, of_tokenizer: int | None, vocabulary: int) -> tuple[int | None, list[str]]:
    """The token with which an empty prompt begins, or None, and remarks for the user. ExportError as above."""
    where, ids = first_ids(model, "bos_token_id", of_tokenizer)
    known = [token for token in ids if token < vocabulary]
    return (known[0] if known else None), dropped(where, ids, vocabulary)


def first_ids(model: Path | None, key: str, of_tokenizer: int | None) -> Found:
    """The ids in the first place that has any."""
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
    """A remark about ids that the model does not have."""
    outside = [token for token in ids if token >= vocabulary]
    if not outside:
        return []
    return [f"{where}: {', '.join(map(str, outside))} left out, the model has the ids 0 to {vocabulary - 1}"]


def sampling_left_out(model: Path | None) -> list[str]:
    """A remark about settings of the source that have an effect and that the server does not apply."""
    config = read_json(model / GENERATION_CONFIG) if model else {}
    found = [key for key, without_effect in SAMPLING.items() if config.get(key) not in (None, without_effect)]
    if not found:
        return []
    return [f"{GENERATION_CONFIG}: {', '.join(found)} not applied: each request says how its text is generated"]
