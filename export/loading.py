"""The first step of an export: read a source, and describe its model in a manifest.

The result is a recipe, whose model has its weights, and a manifest without graphs.
"""

from dataclasses import dataclass, field, replace
from importlib.metadata import version
from math import isqrt
from pathlib import Path

from export.errors import ExportError
from export.graph.recipes import BertRecipe, GptRecipe, ImageRecipe, Recipe, recipe_for
from export.inputs.images import golden_images, processor
from export.inputs.text import golden_texts, sentence_model, tokenizer
from export.inputs.text.sentence_model import SentenceModel
from export.precisions import Targets
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
from protos.artifact import FORMAT_VERSION, GOLDEN_IMAGES, GOLDEN_TEXTS, MAX_RESIZED_PIXELS, TOKENIZER
from protos.manifest_pb2 import CacheLayout, Manifest
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
REGRESSION, SINGLE_LABEL, MULTI_LABEL = "regression", "single_label_classification", "multi_label_classification"


@dataclass(frozen=True)
class Job:
    """The options of one export."""

    source: Source
    name: str
    artifacts: Path
    targets: Targets
    digest: str
    options: str
    image_size: int | None = None  # in pixels; None: the image size of the source
    evaluate: Path | None = None  # a file with inputs of the user's own
    task: str | None = None  # None: config.json names the architecture
    ignore_unused: bool = False  # whether tensors that the model does not use may be left out
    all_targets: bool = True  # whether an infeasible target is an error; otherwise it is left out


@dataclass(frozen=True)
class LoadedSource:
    """A source in memory: its model, and everything that the artifact says about it before a graph is made."""

    recipe: Recipe
    manifest: Manifest
    tokenizer: str | None = None  # in the format of the `tokenizers` library; None for images
    texts: list[list[int]] = field(default_factory=list)  # the token ids of the golden texts
    files: dict[str, bytes] = field(default_factory=dict)  # of the artifact, by name: the tokenizer, golden inputs
    remarks: list[str] = field(default_factory=list)  # for the user: what was guessed or left out


def load(job: Job) -> LoadedSource:
    """Read the source of a job. ExportError says which file and which key cannot be exported."""
    check_image_size(job.image_size)
    source, directory = job.source, job.source.directory
    sentence = sentence_model.read(directory, job.task) if directory else SentenceModel()
    try:
        config, tensors = checkpoints.read(source.encoder)
        config = for_task(config, job.task)
        config = as_encoder(config) if sentence.poolings else config
        fitting = fitted(
            config,
            tensors | sentence.vector.tensors,
            pooling=sentence.poolings,
            vector_layers=sentence.vector.layers,
            image_size=job.image_size,
            file=weights_file(source.encoder),
            ignore_unused=job.ignore_unused,
        )
        recipe = recipe_for(fitting.model)
        names = labels(config) if recipe.task.startswith("classify") else []
    except CheckpointError as error:
        raise ExportError(f"{source.location}: {error}") from error
    if job.task not in (None, recipe.task):
        raise ExportError(
            f"--task {job.task}: found a model for {recipe.task} by its modules.json, expected no other task"
        )
    manifest = new_manifest(job, recipe)
    if recipe.task.startswith("classify"):
        manifest.labels.extend(names)
        by_type = function_to_apply(config, len(names))  # also checks the type
        manifest.function_to_apply = sentence.function_to_apply or by_type
    if isinstance(recipe, ImageRecipe):
        loaded = read_image_input(source, recipe, manifest, config)
    else:
        loaded = read_text_input(source, recipe, manifest, config, sentence)
    remarks = [*remark_on_ignored(fitting.ignored), *remark_on_zeros(fitting.zeros)]
    return replace(loaded, remarks=[*loaded.remarks, *remarks])


def new_manifest(job: Job, recipe: Recipe) -> Manifest:
    """The manifest of a model, without its inputs and graphs."""
    source = job.source
    return Manifest(
        format_version=FORMAT_VERSION,
        name=job.name,
        architecture=recipe.architecture,
        task=recipe.task,
        source=SourceMessage(
            location=source.location, digest=job.digest, options=job.options, revision=source.revision
        ),
        tool_versions=tool_versions(),
    )


def check_image_size(pixels: int | None) -> None:
    """ExportError if the server would refuse images of this size."""
    if pixels is not None and not 0 < pixels <= isqrt(MAX_RESIZED_PIXELS):
        raise ExportError(f"--image-size: found {pixels}, expected 1 to {isqrt(MAX_RESIZED_PIXELS)}")


def remark_on_ignored(tensors: list[str]) -> list[str]:
    """The remark about tensors that --ignore-unused left out."""
    return [f"ignored {len(tensors)} unused tensors: {', '.join(tensors)}"] if tensors else []


def remark_on_zeros(tensors: list[str]) -> list[str]:
    """The remark about tensors that the file lacks and transformers sets to zero."""
    return [f"{tensor} is missing and therefore zero, as in transformers 5" for tensor in tensors]


def read_image_input(
    source: Source, recipe: ImageRecipe, manifest: Manifest, config: dict[str, object]
) -> LoadedSource:
    """The loaded source of a model on images, whose manifest now says how an image file is preprocessed."""
    trained = configuration(config)[1]
    assert source.directory is not None, "an image model is a directory: this is a bug"
    assert isinstance(trained, VitConfig | MixerConfig), "an image model has a size: this is a bug"
    sizes = {"image_size": recipe.config.image_size, "trained": trained.image_size}
    preprocessing = processor.read(source.directory, channels=recipe.config.channels, **sizes)
    manifest.image.CopyFrom(preprocessing.image_input)
    manifest.golden.images = len(golden_images.files(manifest.image))
    files = {GOLDEN_IMAGES: golden_images.make(preprocessing)}
    return LoadedSource(recipe, manifest, files=files, remarks=preprocessing.remarks)


def read_text_input(
    source: Source,
    recipe: Recipe,
    manifest: Manifest,
    config: dict[str, object],
    sentence: SentenceModel,
) -> LoadedSource:
    """The loaded source of a model on texts, whose manifest now says how texts are tokenized and outputs are read."""
    assert isinstance(recipe, BertRecipe | GptRecipe), "only text is tokenized: this is a bug"
    model = tokenizer.ModelDescription(
        family=architecture(config)[0],
        task=recipe.task,
        vocabulary=recipe.config.vocabulary,
        positions=recipe.config.positions,
        segments=getattr(recipe.config, "segments", 0),
        settings=sentence.settings,
    )
    loaded = tokenizer.read(source.tokenizer, source.encoder if source.directory else None, model)
    manifest.text.CopyFrom(loaded.text_input)
    if getattr(recipe.config, "pad_position", False):
        manifest.text.pad_position, manifest.text.pad_position_id = recipe.config.positions, PAD_POSITION
    manifest.text.empty_pairs = sentence.function_to_apply is not None  # a cross-encoder
    golden = golden_texts.make(replace(loaded, text_input=manifest.text), recipe.task)
    manifest.golden.texts = len(golden.texts)
    if recipe.task == "embed":
        (embedding,) = recipe.outputs("fp32").values()
        manifest.embedding_width = embedding.sized({"batch": 1})[1]
        manifest.normalise = sentence.vector.normalise  # by the server: a request may ask for the vector as it is
    if isinstance(recipe, GptRecipe):
        layers, heads = recipe.config.depth, recipe.config.heads
        manifest.cache.CopyFrom(CacheLayout(layers=layers, heads=heads, head_width=recipe.head_width))
    guess = guessed(config)
    return LoadedSource(
        recipe,
        manifest,
        tokenizer=loaded.json,
        texts=[list(probe.input_ids) for probe in golden.texts],
        files={TOKENIZER: loaded.json.encode(), GOLDEN_TEXTS: golden_texts.to_json(golden)},
        remarks=[*([f"guessed: {guess}"] if guess else []), *loaded.remarks],
    )


def function_to_apply(config: dict[str, object], classes: int) -> str:
    """The function from logits to scores that the pipelines of transformers choose. ExportError for an unknown type."""
    kind = config.get("problem_type")
    if kind not in (None, REGRESSION, SINGLE_LABEL, MULTI_LABEL):
        expected = f"{REGRESSION}, {SINGLE_LABEL}, {MULTI_LABEL} or nothing"
        raise ExportError(f"config.json: problem_type is {kind!r}: expected {expected}")
    if kind == REGRESSION:
        return "none"
    return "sigmoid" if kind == MULTI_LABEL or classes == 1 else "softmax"


def tool_versions() -> dict[str, str]:
    """The versions of the packages that made the graphs, as far as they are installed."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # the runtime has one of two names
            continue
    return found
