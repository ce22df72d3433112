"""The pooling of token vectors: `config.json` of a Pooling module of sentence-transformers.

Version 5.4 and later write `pooling_mode`, one name or several; earlier ones a key with true or false for each.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.sources.modules import CONFIG, Module

# The library's names in the order in which it concatenates their vectors, and the names in `models`.
MODES = {
    "cls": "first-token",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean-sqrt-length",
    "weightedmean": "weighted-mean",
    "lasttoken": "last-token",
}
KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
WIDTHS = ("embedding_dimension", "word_embedding_dimension")  # of the encoder, whose own configuration is read
DEFAULT = "mean"  # where no key is true


def read(directory: Path, module: Module, *, prompts: Mapping[str, str]) -> tuple[str, ...]:
    """The poolings of a module, by the names of `models`, in the order in which their vectors are concatenated.

    ExportError names the file, the key, what was found and what is supported.
    """
    name, config = module.file(CONFIG), module.config(directory)
    if not config:
        raise ExportError(f"{name}: found no settings, expected pooling_mode or some of {', '.join(KEYS)}")
    if config.get("include_prompt", True) is not True and any(prompts.values()):
        named = ", ".join(prompt for prompt, text in prompts.items() if text)
        raise ExportError(
            f"{name}: include_prompt is {config['include_prompt']!r} and the model has prompts ({named}), expected "
            "true: vectors are pooled over the prompt, too"
        )
    if unknown := sorted(config.keys() - {*KEYS, *WIDTHS, "pooling_mode", "include_prompt"}):
        raise ExportError(f"{name}: found {', '.join(unknown)}, expected pooling_mode or some of {', '.join(KEYS)}")
    return tuple(MODES[mode] for mode in modes(name, config))


def modes(name: str, config: Mapping[str, Any]) -> list[str]:
    """The poolings by the library's names."""
    if "pooling_mode" not in config:
        return [mode for key, mode in KEYS.items() if config.get(key)] or [DEFAULT]
    found = config["pooling_mode"]
    named = [found] if isinstance(found, str) else found
    if not isinstance(named, list) or not named or not all(mode in MODES for mode in named):
        raise ExportError(f"{name}: pooling_mode is {found!r}, expected one of {', '.join(MODES)}, or a list of them")
    return named
