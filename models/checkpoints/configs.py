"""From a published `config.json` of transformers to a configuration of `models`, and back.

Settings that would silently compute something else are refused by name. Knows no tensors and no files.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from models.checkpoints.architectures import ARCHITECTURES, ENCODERS, MODEL_TYPES, architecture, for_task, named
from models.checkpoints.errors import CheckpointError, Json, whole_number
from models.checkpoints.fields import FIELDS, SWITCHES, sizes
from models.checkpoints.labels import class_count
from models.checkpoints.layout import POSITION_OFFSET
from models.checkpoints.mixer_configs import mixer, published_mixer
from models.checkpoints.nanogpt import activation
from models.config import BertConfig, GptConfig, MixerConfig, StackConfig, VectorLayer, VitConfig
from models.heads import POOLINGS

POOLER = "pooler"  # BERT's own vector for a text, which is a choice of pooling here
OURS: dict[str, type[StackConfig]] = {"bert": BertConfig, "gpt": GptConfig, "vit": VitConfig, "mixer": MixerConfig}


def configuration(
    config: Json, *, pooling: str | Sequence[str] | None = None, vector_layers: Sequence[VectorLayer] = ()
) -> tuple[str, BertConfig | GptConfig | VitConfig | MixerConfig]:
    """The published family (bert, roberta, …, mixer) and the sizes that a published `config.json` describes.

    `pooling` makes an encoder of any BERT, RoBERTa or DistilBERT: "pooler", one of POOLINGS, or several, which are
    concatenated. `vector_layers` follow it. The caller chooses both, because `config.json` does not have them
    (sentence-transformers has files of its own); with them, a file without architectures is that of an encoder.
    """
    poolings = (pooling,) if isinstance(pooling, str) else tuple(pooling or ())
    if poolings != (POOLER,) and not set(poolings) <= set(POOLINGS):
        raise CheckpointError(f"pooling is {pooling!r}: expected {POOLER}, or some of {', '.join(POOLINGS)}")
    if poolings and named(config) is None:
        config = for_task(config, "embed")
    family, head = architecture(config)
    if (poolings or vector_layers) and family not in ENCODERS:
        raise CheckpointError(
            f"pooling is {pooling!r}, with {len(vector_layers)} layers: expected neither, for {family}"
        )
    if vector_layers and not poolings:
        raise CheckpointError(
            f"found {len(vector_layers)} layers after the head {head}: expected pooling, there is no vector"
        )
    if poolings:
        head = POOLER if poolings == (POOLER,) else "pooling"
    try:
        ours = READERS[family](config, head)
        if head == "pooling":
            ours = replace(ours, poolings=poolings)
        return family, replace(ours, vector_layers=tuple(vector_layers)) if vector_layers else ours
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:  # a value out of its range, or of the wrong type
        raise CheckpointError(f"config.json: {error}") from error


def guessed(config: Json) -> str | None:
    """The guesses that were necessary, and the reason, for the user; None if the file has everything."""
    return activation(config)[1] if architecture(config)[0] == "nanogpt" else None


def bert(config: Json, head: str | None, family: str = "bert") -> BertConfig:
    if head is None:
        known = ", ".join((POOLER, *POOLINGS))
        name = config["architectures"][0]
        raise CheckpointError(f"config.json: architectures names {name}, an encoder: expected pooling, one of {known}")
    ours = BertConfig(**sizes(config, family), head=head)
    if head != "masked-language":
        ours = replace(ours, tied_head=True)  # there is no matrix to tie
    return replace(ours, classes=class_count(config)) if head == "classifier" else ours


def roberta(config: Json, head: str | None) -> BertConfig:
    ours = bert(config, head, "roberta")
    if head == "masked-language" and ours.activation != "gelu":
        ours = replace(ours, head_activation="gelu")  # whatever the activation of the blocks
    return replace(ours, positions=ours.positions - POSITION_OFFSET, pad_position=True)


def distilbert(config: Json, head: str | None) -> BertConfig:
    if head == POOLER:
        raise CheckpointError(f"pooling is 'pooler': expected some of {', '.join(POOLINGS)}, DistilBERT has no pooler")
    return replace(bert(config, head, "distilbert"), segments=0, pooler_activation="relu")


def gpt(config: Json, head: str | None) -> GptConfig:
    ours = sizes(config, "gpt")
    inner = config.get("n_inner")
    return GptConfig(**ours, mlp_width=4 * ours["width"] if inner is None else whole_number("n_inner", inner))


def nanogpt(config: Json, head: str | None) -> GptConfig:
    ours = sizes(config, "nanogpt")
    return GptConfig(**ours, mlp_width=4 * ours["width"], activation=activation(config)[0])


def vit(config: Json, head: str | None) -> VitConfig:
    return VitConfig(**sizes(config, "vit"), classes=class_count(config))


def deit(config: Json, head: str | None) -> VitConfig:
    return replace(vit(config, head), class_tokens=2, classifiers=2 if head == "with-teacher" else 1)


READERS = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "gpt": gpt,
    "nanogpt": nanogpt,
    "vit": vit,
    "deit": deit,
    "mixer": lambda config, head: mixer(config),
}


def own_family(config: StackConfig) -> str:
    """The family in which `published` writes a model: the first of those with the same blocks."""
    return next(family for family, kind in OURS.items() if isinstance(config, kind))


def published_config(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The `config.json` that describes `model`, with `names` for its classes."""
    config = model.config
    classes = getattr(config, "classes", 0)
    if names is not None and len(names) != classes:
        raise CheckpointError(f"{len(names)} names for {classes} classes: expected one for each")
    if isinstance(config, MixerConfig):
        return published_mixer(config, names)
    family = own_family(config)
    published = {key: getattr(config, field) for field, (key, _) in FIELDS[family].items()}
    for field, (key, default) in SWITCHES[family].items():
        if getattr(config, field) != default:
            published[key] = not default
    head = getattr(config, "head", None)
    wanted = (family, None if head in ("pooling", POOLER) else head)
    published["architectures"] = [next(name for name, stands_for in ARCHITECTURES.items() if stands_for == wanted)]
    published["model_type"] = MODEL_TYPES.get(family, family)
    if family == "gpt":
        published["n_inner"] = config.mlp_width
    if family == "vit" or head == "classifier":
        names = names or [f"LABEL_{n}" for n in range(classes)]
        published["id2label"] = {str(n): name for n, name in enumerate(names)}
        published["label2id"] = {name: n for n, name in enumerate(names)}
    return published
