"""The names of the classes."""

from collections.abc import Mapping

from models.checkpoints.errors import CheckpointError, Json
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
    names, count = config.get("id2label"), config.get("num_labels")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise CheckpointError(f"config.json: num_labels is {count!r}: expected a whole number, at least 1")
    if names is None:
        return numbered(DEFAULT_COUNT if count is None else count)
    if not isinstance(names, Mapping) or not all(str(number).strip().isdecimal() for number in names):
        raise CheckpointError(f"config.json: id2label is {names!r}: expected the name of each class by its number")
    if count is not None and len(names) != count:
        return numbered(count)
    by_number = {int(number): str(name) for number, name in names.items()}
    if not names or by_number.keys() != set(range(len(names))):
        found = ", ".join(map(str, names)) or "nothing"
        raise CheckpointError(
            f"config.json: id2label numbers {found}: expected 0 to {max(len(names) - 1, 0)}, each once"
        )
    return [by_number[number] for number in range(len(names))]


def numbered(count: int) -> list[str]:
    return [f"LABEL_{n}" for n in range(count)]
