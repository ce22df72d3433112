"""The files of a source that can matter. A repository holds more: other frameworks' weights, cards, logs."""

from pathlib import Path

from export.files import read_json

PROMPTS = "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = (  # of sentence-transformers: the first that says something counts
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
MODEL = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "modules.json",
    PROMPTS,
    *TRANSFORMER_SETTINGS,
    "*_Pooling/config.json",
    "held-out.*",  # a sample that training never saw
)
CHARACTERS = "meta.pkl"  # nanoGPT's, of models that read letter by letter
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
# Each way to keep weights, the best first: the file by which it is known, and what else belongs to it.
WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


def has_weights(directory: Path) -> bool:
    """Whether the weights are there in one of the ways, in shards all of those that the index names."""
    name = next((group[0] for group in WEIGHTS if (directory / group[0]).is_file()), None)
    if name is None or not name.endswith(".json"):
        return name is not None
    shards = read_json(directory / name).get("weight_map") or {}
    return all((directory / shard).is_file() for shard in shards.values())


def files(directory: Path) -> list[Path]:
    """The files of `directory` that an export reads, sorted."""
    weights = next((group for group in WEIGHTS if (directory / group[0]).is_file()), ())
    return sorted({path for pattern in (*MODEL, *TOKENIZER, *weights) for path in directory.glob(pattern)})


def tokenizer_files(path: Path) -> list[Path]:
    """The same for a tokenizer that stands alone: a directory, or a file and what lies beside it."""
    if path.is_dir():
        return sorted({found for pattern in (*TOKENIZER, CHARACTERS) for found in path.glob(pattern)})
    beside = (path.parent / name for name in ("tokenizer_config.json", "special_tokens_map.json"))
    return [path, *(found for found in beside if path.suffix == ".json" and found.is_file())]
