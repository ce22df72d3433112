"""The files of a source that an export can read. A repository has more: other frameworks' weights, cards, logs."""

from collections.abc import Iterator
from pathlib import Path

from export.sources import modules
from export.sources.json_files import read_json
from export.sources.modules import CONFIG, MODULES, POOLING, TRANSFORMER, WEIGHT_FILES, WEIGHTED

GENERATION_CONFIG = "generation_config.json"
LIBRARY_SETTINGS = "config_sentence_transformers.json"  # of sentence-transformers
TRANSFORMER_SETTINGS = (  # of its encoders: the first that is not empty is read
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
MODEL = (
    CONFIG,
    GENERATION_CONFIG,
    "preprocessor_config.json",
    "processor_config.json",
    *TRANSFORMER_SETTINGS,
)
TOP_LEVEL = (  # in the directory itself, even if the encoder has a folder of its own
    MODULES,
    LIBRARY_SETTINGS,
    "held-out.*",  # a held-out sample
)
CHARACTERS = "meta.pkl"  # nanoGPT's vocabulary of characters
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER = (  # the files that AutoTokenizer of transformers may read
    "tokenizer.json",
    "tokenizer.*.json",  # versions, named by fast_tokenizer_files
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "dict.txt",
    "*.model",  # of sentencepiece
)
# Formats of weights in order of preference: the file that identifies the format, and its other files.
WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


def is_complete(directory: Path) -> bool:
    """Whether the encoder's weights and the files of the modules after it are all there."""
    for module in modules.read(directory)[1:]:
        needed = [(CONFIG,), WEIGHT_FILES] if module.kind in WEIGHTED else [(CONFIG,)] if module.kind == POOLING else []
        if not all(any((directory / module.file(name)).is_file() for name in names) for names in needed):
            return False
    return has_weights(directory / modules.encoder_folder(directory))


def module_patterns(directory: Path) -> list[str]:
    """Patterns of the small files of modules in folders of their own, relative to the directory."""
    found = []
    for module in modules.read(directory):
        if module.folder:
            names = (*MODEL, *TOKENIZER) if module.kind == TRANSFORMER else (CONFIG,)
            found += [module.file(name) for name in names]
    return found


def has_weights(directory: Path) -> bool:
    """Whether the weights are there in one of the formats; if in shards, all that the index names."""
    name = next((group[0] for group in WEIGHTS if (directory / group[0]).is_file()), None)
    if name is None or not name.endswith(".json"):
        return name is not None
    shards = read_json(directory / name).get("weight_map") or {}
    return all((directory / shard).is_file() for shard in shards.values())


def files(directory: Path) -> list[Path]:
    """The files of `directory` that an export reads, sorted."""
    encoder = directory / modules.encoder_folder(directory)
    weights = next((group for group in WEIGHTS if (encoder / group[0]).is_file()), ())
    found = {path for pattern in (*MODEL, *TOKENIZER, *weights) for path in encoder.glob(pattern)}
    found |= {path for pattern in TOP_LEVEL for path in directory.glob(pattern)}
    return sorted(found | set(module_files(directory)))


def module_files(directory: Path) -> Iterator[Path]:
    """The files of the modules after the encoder."""
    for module in modules.read(directory)[1:]:
        if module.folder and (directory / module.file(CONFIG)).is_file():
            yield directory / module.file(CONFIG)
        if module.kind in WEIGHTED:
            yield modules.weights_of(directory, module)


def tokenizer_files(path: Path) -> list[Path]:
    """The files of a separate tokenizer: those of a directory, or a file and those beside it."""
    if path.is_dir():
        return sorted({found for pattern in (*TOKENIZER, CONFIG, CHARACTERS) for found in path.glob(pattern)})
    if path.name != "tokenizer.json":
        return [path]
    return tokenizer_files(path.parent)
