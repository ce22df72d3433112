"""The whole way from a source to an artifact. Each step is a file of its own; here they follow each other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as serialised

from export.artifact import graph, store
from export.errors import ExportError
from export.graph.recipes import Arrays, BertRecipe, GptRecipe, ImageRecipe, Recipe, recipe_for
from export.inputs.images import golden_images, processor
from export.inputs.text import golden_texts, sentence_model, tokenizer
from export.inputs.text.sentence_model import TextModel
from export.parity import cases, decode, evaluation, held_out
from export.parity.cases import Case
from export.precisions import Precision
from export.progress import Progress
from export.sources.lookup import Source
from export.sources.modules import as_encoder
from models import MixerConfig, VitConfig, checkpoints
from models.checkpoints import (
    CheckpointError,
    architecture,
    configuration,
    fitted,
    for_task,
    guessed,
    labels,
    weights_file,
)
from models.checkpoints.layout import PAD_POSITION
from protos.artifact import (
    FORMAT_VERSION,
    GOLDEN_IMAGES,
    GOLDEN_TENSORS,
    GOLDEN_TEXTS,
    INPUT,
    OUTPUT,
    TOKENIZER,
    golden_key,
)
from protos.manifest_pb2 import CacheLayout, Calibration, Manifest
from protos.manifest_pb2 import Source as SourceMessage

TOOLS = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx-ir",
    "onnxruntime-gpu",
    "onnxruntime",
    "tokenizers",
    "transformers",
    "pillow",
)
MILLION = 1e6


@dataclass(frozen=True)
class Job:
    """What to export, as what, where to, and for which machines."""

    source: Source
    name: str
    artifacts: Path
    targets: dict[str, Precision]
    digest: str
    options: str
    image_size: int | None = None  # in pixels, if it is to be another than the source's
    calibrate: Path | None = None  # a file with inputs of the user's own
    task: str | None = None  # what the model is for, if config.json does not say
    ignore_unused: bool = False  # whether tensors that the model has no place for may be left out
    all_targets: bool = True  # whether a target that the model cannot be made for is an error, or is left out


@dataclass(frozen=True)
class LoadedSource:
    """A source in memory: its model, and all that the artifact says of it before a graph is made."""

    recipe: Recipe
    manifest: Manifest
    tokenizer: str | None = None  # in the format of the `tokenizers` library; None for images
    files: dict[str, bytes] = field(default_factory=dict)  # of the artifact, by name: the tokenizer, golden inputs
    remarks: list[str] = field(default_factory=list)  # for the user: what was guessed or left out


def export(job: Job, progress: Progress) -> Path:
    """Write the next version of `job.name` and return its directory. ExportError, and nothing written, if it fails."""
    with progress.step("read the source") as remarks:
        loaded = read(job)
        recipe, manifest = loaded.recipe, loaded.manifest
        parameters = sum(parameter.numel() for parameter in recipe.parameters())
        remarks.append(f"{recipe.architecture}, {recipe.task}, {parameters / MILLION:.1f} M weights")
        remarks += loaded.remarks
        targets, left_out = possible(recipe, job)
        remarks += left_out
    with progress.step("run PyTorch") as remarks:
        known = references(job, loaded, targets, progress)
        remarks.append(f"{len(known.tried)} cases")
        if known.own_cases:
            remarks.append(f"{known.own.inputs} inputs of {known.own.file}")
    with store.staging(job.artifacts) as directory:
        for name, contents in loaded.files.items():
            (directory / name).write_bytes(contents)
        save_golden(directory / GOLDEN_TENSORS, recipe, known.tried)
        # Those in fp32 first: a model that was made half as precise stays so.
        for target, precision in sorted(targets.items(), key=lambda chosen: chosen[1].datatype != "FP32"):
            manifest.graphs.append(graph.make(directory, target, precision, recipe, known, progress))
        with progress.step("publish") as remarks:
            published = store.publish(directory, job.artifacts, manifest)
            remarks.append(f"{sum(file.bytes for file in manifest.files) / MILLION:.1f} MB")
    return published


def read(job: Job) -> LoadedSource:
    """The model as a recipe, the manifest as far as the source says it, and the files for its inputs."""
    source, directory = job.source, job.source.directory
    text = sentence_model.read(directory, job.task) if directory else TextModel()
    try:
        config, tensors = checkpoints.read(source.encoder)
        config = for_task(config, job.task)
        config = as_encoder(config) if text.poolings else config
        loaded = fitted(
            config,
            tensors | text.vector.tensors,
            pooling=text.poolings,
            layers=text.vector.layers,
            image_size=job.image_size,
            file=weights_file(source.encoder),
            ignore_unused=job.ignore_unused,
        )
        recipe = recipe_for(loaded.model)
        names = labels(config) if recipe.task.startswith("classify") else []
    except CheckpointError as error:
        raise ExportError(f"{source.location}: {error}") from error
    if job.task not in (None, recipe.task):
        raise ExportError(
            f"--task {job.task}: found a model for {recipe.task} by its modules.json, expected no other task"
        )
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=job.name,
        architecture=recipe.architecture,
        task=recipe.task,
        source=SourceMessage(
            location=source.location, digest=job.digest, options=job.options, revision=source.revision
        ),
        tool_versions=tool_versions(),
    )
    if recipe.task in ("classify-text", "classify-image"):
        manifest.labels.extend(names)
        manifest.function_to_apply = text.function_to_apply or function_to_apply(config, len(names))
    if isinstance(recipe, ImageRecipe):
        found = read_image_input(source, recipe, manifest, config)
    else:
        found = read_text_input(source, recipe, manifest, config, text)
    return replace(found, remarks=[*found.remarks, *ignored(loaded.ignored)])


def ignored(tensors: list[str]) -> list[str]:
    """What --ignore-unused left out, for the user."""
    return [f"ignored {len(tensors)} unused tensors: {', '.join(tensors)}"] if tensors else []


def read_image_input(
    source: Source, recipe: ImageRecipe, manifest: Manifest, config: dict[str, object]
) -> LoadedSource:
    """Add to the manifest how an image file becomes the input of the graph."""
    trained = configuration(config)[1]
    assert source.directory is not None, "an image model is a directory: this is a bug"
    assert isinstance(trained, VitConfig | MixerConfig), "an image model has a size: this is a bug"
    sizes = {"image_size": recipe.config.image_size, "trained": trained.image_size}
    found = processor.read(source.directory, channels=recipe.config.channels, **sizes)
    manifest.image.CopyFrom(found.manifest)
    return LoadedSource(recipe, manifest, files={GOLDEN_IMAGES: golden_images.made(found)}, remarks=found.remarks)


def read_text_input(
    source: Source,
    recipe: Recipe,
    manifest: Manifest,
    config: dict[str, object],
    text: TextModel,
) -> LoadedSource:
    """Add to the manifest how a text becomes the input of the graph, and what becomes of its output."""
    assert isinstance(recipe, BertRecipe | GptRecipe), "only text is tokenized: this is a bug"
    needs = tokenizer.Needs(
        family=architecture(config)[0],
        task=recipe.task,
        vocabulary=recipe.config.vocabulary,
        positions=recipe.config.positions,
        segments=getattr(recipe.config, "segments", 0),
        settings=text.settings,
    )
    found = tokenizer.read(source.tokenizer, source.encoder if source.directory else None, needs)
    manifest.text.CopyFrom(found.manifest)
    if getattr(recipe.config, "pad_position", False):
        manifest.text.pad_position, manifest.text.pad_position_id = recipe.config.positions, PAD_POSITION
    manifest.text.empty_pairs = text.function_to_apply is not None  # a cross-encoder
    golden = golden_texts.make(replace(found, manifest=manifest.text), recipe.task)
    if recipe.task == "embed":
        (embedding,) = recipe.outputs("fp32").values()
        manifest.embedding_width = embedding.sized({"batch": 1})[1]
        manifest.normalise = text.vector.normalise  # left to the server, which may be asked for vectors as they are
    if isinstance(recipe, GptRecipe):
        layers, heads = recipe.config.depth, recipe.config.heads
        manifest.cache.CopyFrom(CacheLayout(layers=layers, heads=heads, head_width=recipe.head_width))
    guess = guessed(config)
    return LoadedSource(
        recipe,
        manifest,
        tokenizer=found.tokenizer,
        files={TOKENIZER: found.tokenizer.encode(), GOLDEN_TEXTS: golden_texts.to_json(golden)},
        remarks=[*([f"guessed: {guess}"] if guess else []), *found.remarks],
    )


def function_to_apply(config: dict[str, object], classes: int) -> str:
    """From logits to scores, as the pipelines of transformers choose it."""
    match config.get("problem_type"):
        case "regression":
            return "none"
        case "multi_label_classification":
            return "sigmoid"
    return "softmax" if classes > 1 else "sigmoid"


def tool_versions() -> dict[str, str]:
    """The packages that made the graphs, as far as they are installed."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # the runtime has one of two names
            continue
    return found


def possible(recipe: Recipe, job: Job) -> tuple[dict[str, Precision], list[str]]:
    """The targets that the model can be made for, and why the others are left out.

    ExportError for the first that it cannot be made for if the user named the targets, or if none is left.
    """
    reasons = {target: recipe.refuses(target, precision.name) for target, precision in job.targets.items()}
    left_out = [f"{target} left out: {reason}" for target, reason in reasons.items() if reason]
    if left_out and (job.all_targets or len(left_out) == len(reasons)):
        target, reason = next((target, reason) for target, reason in reasons.items() if reason)
        raise ExportError(f"--target {target}={job.targets[target].name}: {reason}")
    return {target: precision for target, precision in job.targets.items() if not reasons[target]}, left_out


def references(job: Job, loaded: LoadedSource, targets: dict[str, Precision], progress: Progress) -> graph.References:
    """What PyTorch makes in fp32 of all that the graphs will be tried on."""
    recipe, manifest, tokenizer = loaded.recipe, loaded.manifest, loaded.tokenizer
    own = evaluation.inputs_for(recipe, manifest, tokenizer, job.calibrate) if job.calibrate else []
    rounds = any(precision.weights for precision in targets.values())
    directory = job.source.directory
    sample = held_out.read(directory, recipe, manifest, tokenizer) if rounds and directory else None
    return graph.References(
        tried=seeded(recipe, manifest.text.max_length, progress.each),
        whole=reference(recipe, decode.inputs_for(recipe)) if isinstance(recipe, GptRecipe) else None,
        own=Calibration(file=job.calibrate.name if job.calibrate else "", inputs=evaluation.count(own)),
        own_cases=[reference(recipe, inputs) for inputs in own],
        sample=sample,
        score=sample.score(lambda inputs: reference(recipe, inputs).reference) if sample else 0.0,
    )


def seeded(recipe: Recipe, max_length: int, each: Callable[[list[Arrays]], Iterator[Arrays]] = iter) -> list[Case]:
    """Seeded inputs and what PyTorch makes of them in fp32. Those to travel with the artifact come first."""
    return [reference(recipe, inputs) for inputs in each(cases.inputs_for(recipe, max_length))]


def reference(recipe: Recipe, inputs: Arrays) -> Case:
    """PyTorch's answer to one set of inputs."""
    with torch.inference_mode():
        answer = recipe.reference({name: torch.from_numpy(array) for name, array in inputs.items()})
    return Case(inputs, answer.numpy().astype(np.float32))


def save_golden(path: Path, recipe: Recipe, tried: list[Case]) -> None:
    """The first cases, by which the server checks the very provider it serves with."""
    arrays: Arrays = {}
    for number, case in enumerate(cases.golden(tried)):
        arrays |= {golden_key(number, INPUT, name): array for name, array in case.inputs.items()}
        arrays[golden_key(number, OUTPUT, recipe.result)] = case.reference
    path.write_bytes(serialised(arrays))  # the library's own save_file has an error of its own for a full disk
