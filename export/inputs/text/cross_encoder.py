"""The function from a cross-encoder's logits to scores, which sentence-transformers saves in one of three places.

`config_sentence_transformers.json` has it in version 5.4 and later, `config.json` before, under two keys in turn.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.sources.json_files import read_json
from export.sources.layout import LIBRARY_SETTINGS

# The library's names of activations, and the functions of the server.
FUNCTIONS = {
    "torch.nn.modules.linear.Identity": "none",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.modules.activation.Softmax": "softmax",  # over the classes, as in `predict`
}
FUNCTIONS |= {f"torch.nn.{name.rpartition('.')[2]}": function for name, function in FUNCTIONS.items()}
HINTS = ("sentence_transformers", "sbert_ce_default_activation_function")  # keys of config.json


def function_to_apply(directory: Path, config: Mapping[str, Any], *, classes: int, saved_whole: bool) -> str | None:
    """The function that `CrossEncoder.predict` applies to logits; None for a classifier that is not a cross-encoder.

    `saved_whole`: the directory has `modules.json`, which makes it a cross-encoder. ExportError for an unknown
    activation.
    """
    found = None
    for file, key, value in read_activations(directory, config, saved_whole=saved_whole):
        if value is not None:
            found = file, key, value
            break
    if found is None:
        is_cross_encoder = saved_whole or any(hint in config for hint in HINTS)
        return ("sigmoid" if classes == 1 else "none") if is_cross_encoder else None
    file, key, value = found
    if value not in FUNCTIONS:
        known = ", ".join(name for name in FUNCTIONS if ".modules." in name)
        raise ExportError(f"{file}: {key} is {value!r}, expected one of {known}")
    return FUNCTIONS[value]


def read_activations(directory: Path, config: Mapping[str, Any], *, saved_whole: bool) -> list[tuple[str, str, Any]]:
    """The places where an activation may be saved, in order of precedence: file, key and value."""
    nested = config.get(HINTS[0]) or {}
    if not isinstance(nested, dict):
        raise ExportError(f"config.json: {HINTS[0]} is {nested!r}, expected an object that may hold activation_fn")
    places = [
        ("config.json", f"{HINTS[0]}.activation_fn", nested.get("activation_fn")),
        ("config.json", HINTS[1], config.get(HINTS[1])),
    ]
    if saved_whole:
        settings = read_json(directory / LIBRARY_SETTINGS)
        places.insert(0, (LIBRARY_SETTINGS, "activation_fn", settings.get("activation_fn")))
    return places
