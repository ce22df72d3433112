"""The modules of a model of sentence-transformers, as `modules.json` lists them: their kinds and folders.

Imports no torch: the digest and the download need these lists.
"""

from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from export.errors import ExportError
from export.sources.json_files import read_any_json, read_json

MODULES = "modules.json"
LIBRARY = "sentence_transformers."  # prefix of the names of its modules in all versions
TRANSFORMER, POOLING = "Transformer", "Pooling"
WEIGHTED = ("Dense", "LayerNorm")  # modules after the pooling that have weights
WEIGHTLESS = ("Normalize", "Dropout")
KINDS = (TRANSFORMER, POOLING, *WEIGHTED, *WEIGHTLESS)
CONFIG = "config.json"
# The encoder of each family: the library drops the head of a checkpoint before the pooling.
ENCODERS = {"bert": "BertModel", "roberta": "RobertaModel", "distilbert": "DistilBertModel"}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # of a module: the first that exists is read


@dataclass(frozen=True)
class Module:
    """One module: its class, and its folder within the model's directory, "" for the directory itself."""

    kind: str
    folder: str

    def file(self, name: str) -> str:
        """The path of a file of the module, relative to the model's directory."""
        return f"{self.folder}/{name}" if self.folder else name

    def config(self, directory: Path) -> dict[str, Any]:
        """Its settings; empty if it has none."""
        return read_json(directory / self.file(CONFIG))


def read(directory: Path) -> tuple[Module, ...]:
    """The modules in the order in which they run; none if there is no modules.json.

    ExportError for an unknown module, code in the source, or a folder outside of the directory.
    """
    if not (directory / MODULES).is_file():
        return ()
    listed = read_any_json(directory / MODULES)
    if not isinstance(listed, list) or not listed or not all(isinstance(each, dict) for each in listed):
        raise ExportError(f"{MODULES}: found {str(listed)[:80]}, expected a list of modules, each with type and path")
    found = tuple(Module(kind_of(each.get("type")), folder_of(each.get("path"))) for each in listed)
    if found[0].kind != TRANSFORMER:
        raise ExportError(f"{MODULES}: found {found[0].kind} first, expected {TRANSFORMER}")
    return found


def kind_of(type_name: Any) -> str:
    """The class that a type names, without its package, which depends on the version."""
    kind = str(type_name).rpartition(".")[2]
    if not str(type_name).startswith(LIBRARY) or kind not in KINDS:
        raise ExportError(
            f"{MODULES}: type is {type_name!r}, expected one of sentence-transformers' {', '.join(KINDS)}; other "
            "modules cannot be exported"
        )
    return kind


def folder_of(path: Any) -> str:
    """A folder within the directory, with this system's separators."""
    parts = PureWindowsPath(str(path)).parts
    if not isinstance(path, str) or PureWindowsPath(path).anchor or ".." in parts:
        raise ExportError(f"{MODULES}: path is {path!r}, expected a folder within the model's directory")
    return "/".join(parts)


def encoder_folder(directory: Path) -> str:
    """The folder with the weights, config.json and the tokenizer: "" for the directory itself."""
    modules = read(directory)
    return modules[0].folder if modules else ""


def as_encoder(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the encoder as its architecture; unchanged if the family is unknown."""
    name = ENCODERS.get(str(config.get("model_type")))
    return {**config, "architectures": [name]} if name else config


def weights_of(directory: Path, module: Module) -> Path:
    """The file with the weights of a module. ExportError if there is none."""
    for name in WEIGHT_FILES:
        if (directory / module.file(name)).is_file():
            return directory / module.file(name)
    raise ExportError(f"{module.folder}: found no weights of {module.kind}, expected {' or '.join(WEIGHT_FILES)}")
