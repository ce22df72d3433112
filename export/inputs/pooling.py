"""How a text's vectors become one: sentence-transformers keeps it in files of its own, beside `config.json`.

Source: the directory layout of sentence-transformers (`modules.json`, `1_Pooling/config.json`, `2_Normalize`).
"""

from dataclasses import dataclass
from pathlib import Path

from export.errors import ExportError
from export.files import read_any_json, read_json

MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first-token"}
PLAIN_ENCODERS = {"BertModel", "RobertaModel", "DistilBertModel"}


@dataclass(frozen=True)
class Pooling:
    """`pooling` as models/checkpoints names it, None if the model has a head of its own."""

    pooling: str | None = None
    normalise: bool = False


def read(directory: Path) -> Pooling:
    """The pooling that a directory asks for: its own, or the mean for an encoder that says nothing."""
    modules = read_any_json(directory / "modules.json")
    if not modules:
        architectures = read_json(directory / "config.json").get("architectures") or []
        return Pooling(None if PLAIN_ENCODERS.isdisjoint(architectures) else "mean")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise ExportError(f"modules.json: found {', '.join(kinds)}, expected Transformer, Pooling and maybe Normalize")
    return Pooling(mode(directory / modules[1]["path"] / "config.json"), len(kinds) == 3)


def mode(path: Path) -> str:
    """The one way of pooling that is switched on."""
    config = read_json(path)
    found = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(found) != 1 or found[0] not in MODES:
        raise ExportError(f"{path.parent.name}/{path.name}: found {found}, expected one of {', '.join(MODES)}")
    return MODES[found[0]]
