"""The names of the classes."""

from collections.abc import Mapping
from typing import Any

from models.checkpoints.errors import CheckpointError, Json, whole_number
from models.checkpoints.mixer_configs import mixer, pretrained_settings

DEFAULT_COUNT = 2  # of classes: transformers' default


def labels(config: Json) -> list[str]:
    """The name of each class; LABEL_0, LABEL_1 and so on if the file has none, as in transformers."""
    return timm_labels(config) if "architecture" in config else transformers_labels(config)


def timm_labels(config: Json) -> list[str]:
    """The names in timm's keys. CheckpointError if their number is not that of the classes."""
    pretrained = pretrained_settings(config)
    names = config.get("label_names") or pretrained.get("label_names") or pretrained.get("labels")
    count = mixer(config).classes
    if not names:
        return numbered(count)
    if not isinstance(names, list):
        raise CheckpointError(f"config.json: label_names is {names!r}: expected a list with a name for each class")
    if len(names) != count:
        raise CheckpointError(f"config.json: {len(names)} labels for {count} classes: expected one for each")
    return [str(name) for name in names]


def transformers_labels(config: Json) -> list[str]:
    """The names as `PreTrainedConfig` reads them: `num_labels` replaces an `id2label` of another length.

    `label2id` is not read, as in the library. CheckpointError if the numbers of the classes have gaps: a pipeline of
    transformers has no name for such a class either.
    """
    names, count = config.get("id2label"), class_count(config)
    return numbered(count) if names is None or len(names) != count else in_order(names)


def class_count(config: Json) -> int:
    """The number of classes in a file of transformers. CheckpointError as in `transformers_labels`.

    There is no list of names yet: a wrong number of them could take all memory.
    """
    names, count = config.get("id2label"), config.get("num_labels")
    if count is not None:
        whole_number("num_labels", count)
    if names is None:
        return DEFAULT_COUNT if count is None else int(count)
    if not isinstance(names, Mapping) or not all(str(number).strip().isdecimal() for number in names):
        raise CheckpointError(f"config.json: id2label is {names!r}: expected the name of each class by its number")
    if count is not None and len(names) != count:
        return int(count)
    return len(in_order(names))


def in_order(names: Mapping[Any, Any]) -> list[str]:
    """The names by number. CheckpointError if the numbers have gaps."""
    by_number = {int(number): str(name) for number, name in names.items()}
    if not names or by_number.keys() != set(range(len(names))):
        found = ", ".join(map(str, names)) or "nothing"
        raise CheckpointError(
            f"config.json: id2label numbers {found}: expected 0 to {max(len(names) - 1, 0)}, each once"
        )
    return [by_number[number] for number in range(len(names))]


def numbered(count: int) -> list[str]:
    return [f"LABEL_{n}" for n in range(count)]
