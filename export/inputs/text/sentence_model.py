"""A directory as sentence-transformers reads it: the encoder, the modules after it, and the settings for texts.

Without `modules.json` an encoder is pooled by the mean, as in the library, and any other model is as in transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.inputs.text import cross_encoder, pooling, text_settings, vector_layers
from export.inputs.text.text_settings import TextSettings
from export.inputs.text.vector_layers import VectorLayers
from export.sources import modules as saved
from export.sources.json_files import read_json
from export.sources.layout import LIBRARY_SETTINGS
from export.sources.modules import ENCODERS, POOLING, Module, as_encoder
from models.checkpoints import CheckpointError, class_count, configuration, for_task

CLASSIFIER = "ForSequenceClassification"
EMBEDDER_TYPE, CROSS_ENCODER_TYPE = "SentenceTransformer", "CrossEncoder"  # the library's names


@dataclass(frozen=True)
class SentenceModel:
    """The settings of sentence-transformers.

    `poolings` are empty for a model with a head; otherwise config.json is read `as_encoder`. `function_to_apply` is
    None if the files of transformers decide.
    """

    poolings: tuple[str, ...] = ()
    vector: VectorLayers = VectorLayers()
    settings: TextSettings = field(default_factory=TextSettings)
    function_to_apply: str | None = None


def read(directory: Path, task: str | None = None) -> SentenceModel:
    """Read the files in `directory`; `task` replaces an architecture that config.json does not name.

    ExportError names the file and the key of what is not supported.
    """
    modules = saved.read(directory)
    config = read_config(directory, task)
    architectures = [str(name) for name in config.get("architectures") or []]
    if not modules:
        if not set(ENCODERS.values()).isdisjoint(architectures):
            return SentenceModel(poolings=("mean",), settings=TextSettings(prompts=text_settings.ALWAYS))
        return SentenceModel(function_to_apply=scores(directory, config, architectures, saved_whole=False))
    settings = read_json(directory / LIBRARY_SETTINGS)
    if len(modules) > 1 and modules[1].kind == POOLING:
        check_type(settings, EMBEDDER_TYPE)
        return embedder(directory, modules, config, settings)
    if len(modules) == 1 and any(name.endswith(CLASSIFIER) for name in architectures):
        check_type(settings, CROSS_ENCODER_TYPE)
        return SentenceModel(
            settings=text_settings.read(directory, encoder(directory), task="sequence-classification", output="logits"),
            function_to_apply=scores(directory, config, architectures, saved_whole=True),
        )
    found = ", ".join(module.kind for module in modules)
    raise ExportError(
        f"modules.json: found {found} with {', '.join(architectures) or 'no architecture'}, expected Transformer and "
        f"Pooling (an embedder), or Transformer alone with a …{CLASSIFIER} (a cross-encoder)"
    )


def read_config(directory: Path, task: str | None) -> dict[str, Any]:
    """The encoder's config.json, with the architecture for `task`."""
    try:
        return for_task(read_json(encoder(directory) / "config.json"), task)
    except CheckpointError as error:
        raise ExportError(f"{directory}: {error}") from error


def encoder(directory: Path) -> Path:
    """The directory with config.json, the weights and the tokenizer."""
    return directory / saved.encoder_folder(directory)


def embedder(
    directory: Path, modules: Sequence[Module], config: dict[str, Any], settings: dict[str, Any]
) -> SentenceModel:
    """A model that computes a vector for each text."""
    texts = text_settings.read(
        directory,
        encoder(directory),
        task="feature-extraction",
        output="last_hidden_state",
        always=text_settings.ALWAYS,
    )
    try:
        width = configuration(as_encoder(config), pooling="mean")[1].width
    except CheckpointError as error:
        raise ExportError(f"{modules[0].file('config.json')}: {error}") from error
    poolings = pooling.read(directory, modules[1], prompts=texts.prompts)
    cut_to = settings.get("truncate_dim")
    if cut_to is not None and (not isinstance(cut_to, int) or isinstance(cut_to, bool) or cut_to < 1):
        raise ExportError(f"{LIBRARY_SETTINGS}: truncate_dim is {cut_to!r}, expected a width, 1 or more, or null")
    vector = vector_layers.read(directory, modules[2:], width=width * len(poolings), cut_to=cut_to)
    return SentenceModel(poolings, vector, texts)


def scores(directory: Path, config: dict[str, Any], architectures: Sequence[str], *, saved_whole: bool) -> str | None:
    """The function that a cross-encoder applies to its logits; None for every other model."""
    if not any(name.endswith(CLASSIFIER) for name in architectures):
        return None
    try:
        classes = class_count(config)
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    return cross_encoder.function_to_apply(directory, config, classes=classes, saved_whole=saved_whole)


def check_type(settings: dict[str, Any], expected: str) -> None:
    """ExportError if the library would load the directory as another kind of model than its modules make."""
    found = settings.get("model_type", expected)
    if found != expected:
        raise ExportError(f"{LIBRARY_SETTINGS}: model_type is {found!r}, expected {expected!r} with these modules")
