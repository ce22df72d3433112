"""The family and the head of the model that a published `config.json` describes.

The file names an architecture; if not, its model type and a task determine one. Knows no sizes and no tensors.
"""

from typing import Any

from models.checkpoints.errors import CheckpointError, Json, expect
from models.checkpoints.layout import POSITION_OFFSET
from models.checkpoints.mixer_configs import MIXERS, check_mixer
from models.checkpoints.nanogpt import ARCHITECTURE as NANOGPT

# Published architecture: its family and its head (for an encoder, the caller chooses the head).
ARCHITECTURES: dict[str, tuple[str, str | None]] = {
    "BertForMaskedLM": ("bert", "masked-language"),
    "BertForPreTraining": ("bert", "masked-language"),
    "BertForSequenceClassification": ("bert", "classifier"),
    "BertModel": ("bert", None),
    "RobertaForMaskedLM": ("roberta", "masked-language"),
    "RobertaForSequenceClassification": ("roberta", "classifier"),
    "RobertaModel": ("roberta", None),
    "DistilBertForMaskedLM": ("distilbert", "masked-language"),
    "DistilBertForSequenceClassification": ("distilbert", "classifier"),
    "DistilBertModel": ("distilbert", None),
    "GPT2LMHeadModel": ("gpt", None),
    "ViTForImageClassification": ("vit", None),
    "DeiTForImageClassification": ("deit", None),
    "DeiTForImageClassificationWithTeacher": ("deit", "with-teacher"),
    NANOGPT: ("nanogpt", None),
}
ENCODERS = ("bert", "roberta", "distilbert")
MODEL_TYPES = {"gpt": "gpt2"}  # transformers' name of a family, if it differs
# The tasks of each family, with the architecture that transformers' auto classes choose.
TASKS: dict[str, dict[str, str]] = {
    "bert": {
        "fill-mask": "BertForMaskedLM",
        "classify-text": "BertForSequenceClassification",
        "embed": "BertModel",
    },
    "roberta": {
        "fill-mask": "RobertaForMaskedLM",
        "classify-text": "RobertaForSequenceClassification",
        "embed": "RobertaModel",
    },
    "distilbert": {
        "fill-mask": "DistilBertForMaskedLM",
        "classify-text": "DistilBertForSequenceClassification",
        "embed": "DistilBertModel",
    },
    "gpt": {"generate": "GPT2LMHeadModel"},
    "nanogpt": {"generate": NANOGPT},
    "vit": {"classify-image": "ViTForImageClassification"},
    "deit": {"classify-image": "DeiTForImageClassification"},
    "mixer": {"classify-image": "mixer"},
}
BY_MODEL_TYPE = {MODEL_TYPES.get(family, family): family for family in TASKS if family not in ("nanogpt", "mixer")}
HEADS = {
    "masked-language": "fill-mask",
    "classifier": "classify-text",
}  # of encoders; no head: "embed"
# Published field: the only value with which the model computes what this code computes.
BERT_EXPECTED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
EXPECTED: dict[str, dict[str, Any]] = {
    "all": {"auto_map": None, "quantization_config": None},  # code in the source; quantised weights
    "bert": BERT_EXPECTED,
    "roberta": BERT_EXPECTED | {"pad_token_id": POSITION_OFFSET - 1},
    "distilbert": {},
    "gpt": {"add_cross_attention": False},
    "nanogpt": {},
    "vit": {},
    "deit": {},
}


def architecture(config: Json) -> tuple[str, str | None]:
    """The family of a published architecture, and its head. (timm has one name, transformers a list.)

    CheckpointError if it is unknown, or if a setting would make it compute something else.
    """
    if "architecture" in config:
        check_mixer(config["architecture"])
        return "mixer", None
    name = named(config)
    if name is None:
        raise CheckpointError(f"config.json: architectures is missing: {wanted(config)}")
    if name not in ARCHITECTURES:
        known = ", ".join([*(name for name in ARCHITECTURES if name != NANOGPT), *MIXERS])
        raise CheckpointError(f"config.json: architectures names {name}: expected one of {known}; {wanted(config)}")
    family, head = ARCHITECTURES[name]
    expect(config, {"model_type": MODEL_TYPES.get(family, family), **EXPECTED["all"], **EXPECTED[family]})
    return family, head


def for_task(config: Json, task: str | None) -> dict[str, Any]:
    """The configuration with the architecture for `task`; unchanged if it is None.

    CheckpointError if the family is unknown, or if it does not have the task. Missing tensors of the head are detected
    when the tensors are read.
    """
    if task is None:
        return dict(config)
    family = family_of(config)
    if family is None:
        found = f"model_type is {config['model_type']!r}" if config.get("model_type") else "model_type is missing"
        expected = ", ".join(BY_MODEL_TYPE)
        raise CheckpointError(f"config.json: {found}: expected one of {expected}, or an architecture of theirs")
    if task not in TASKS[family]:
        raise CheckpointError(f"--task {task}: expected {choices(family)}, for a model of the family {family}")
    name = named(config)
    if "architecture" in config or (name in ARCHITECTURES and task_of(*ARCHITECTURES[name]) == task):
        return dict(config)
    return {**config, "architectures": [TASKS[family][task]]}


def family_of(config: Json) -> str | None:
    """The family by the architecture's name or, if that is missing or unknown, by the model type; None if neither."""
    if "architecture" in config:
        return "mixer"
    name = named(config)
    return ARCHITECTURES[name][0] if name in ARCHITECTURES else BY_MODEL_TYPE.get(str(config.get("model_type")))


def task_of(family: str, head: str | None) -> str:
    """The task of a known architecture."""
    return HEADS.get(str(head), "embed") if family in ENCODERS else next(iter(TASKS[family]))


def named(config: Json) -> str | None:
    """The first of the architectures that a file names; None if it names none."""
    names = config.get("architectures")
    if names is None or names == []:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"config.json: architectures is {names!r}: expected a list of names, or nothing")
    return str(names[0])


def wanted(config: Json) -> str:
    """The hint for an architecture that is missing or unknown."""
    family = family_of(config)
    if family is not None:
        return f"take --task {choices(family)} if its tensors are those of such a {config['model_type']} model"
    found = f"found model_type {config['model_type']!r}" if config.get("model_type") else "found no model_type either"
    return f"{found}; --task needs a model_type that is one of {', '.join(BY_MODEL_TYPE)}"


def choices(family: str) -> str:
    """The tasks of a family, for an error text."""
    *others, last = TASKS[family]
    return f"{', '.join(others)} or {last}" if others else last
