"""What the classes are called."""

from collections.abc import Mapping

from models.checkpoints.errors import CheckpointError, Json
from models.checkpoints.mixer_configs import mixer


def labels(config: Json) -> list[str]:
    """The name of each class; LABEL_0, LABEL_1 and so on where the file has none, as transformers calls them."""
    if "architecture" in config:
        pretrained = config.get("pretrained_cfg", config) or {}  # older files have its keys at their top
        names = config.get("label_names") or pretrained.get("label_names") or pretrained.get("labels")
        count = mixer(config).classes
    else:
        names, count = config.get("id2label"), config.get("num_labels")
        count = count if count is not None else len(names) if names else 2
    if not names:
        return [f"LABEL_{n}" for n in range(count)]
    if isinstance(names, Mapping):
        numbers = [str(n) for n in range(len(names))]
        if names.keys() != set(numbers):
            raise CheckpointError(f"config.json: labels are numbered {', '.join(names)}: expected 0 to {numbers[-1]}")
        names = [names[number] for number in numbers]
    if len(names) != count:
        raise CheckpointError(f"config.json: {len(names)} labels for {count} classes: expected one for each")
    return [str(name) for name in names]
