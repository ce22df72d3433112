"""The settings of sentence-transformers for texts and for their tokenizer.

Sources: `config_sentence_transformers.json` (prompts) and the file beside the encoder that is called
`sentence_bert_config.json` or, in old models, after another family. Embedders and cross-encoders have both. Read as
version 6 of the library reads them: it lower-cases in the tokenizer, where special tokens in a text stay as they are,
and strips no white space.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers

from export.errors import ExportError
from export.sources.json_files import read_json
from export.sources.layout import LIBRARY_SETTINGS, TRANSFORMER_SETTINGS

ALWAYS = {"query": "", "document": ""}  # prompts that every embedder of the library has
# Keys of the settings: those that do not change the results of `encode` and `predict`, and those that are read here.
WITHOUT_EFFECT = ("unpad_inputs", "query_length", "document_length", "query_expansion")
READ = (
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "processing_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "model_args",
    "model_kwargs",
    "config_args",
    "config_kwargs",
)
# Arguments for loading a model that change only where or how fast it computes.
MODEL_ARGUMENTS = (
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "low_cpu_mem_usage",
    "use_safetensors",
    "device_map",
    "add_pooling_layer",
    "trust_remote_code",
)
CONFIG_ARGUMENTS = ("output_hidden_states", "output_attentions", "use_cache", "trust_remote_code")
# Arguments of the tokenizer's call, and the values that do not change its result (None: any).
PROCESSING: dict[str, tuple[Any, ...] | None] = {
    "padding": None,
    "pad_to_multiple_of": None,
    "return_tensors": None,
    "max_length": None,  # read
    "truncation": (True, "longest_first"),
    "add_special_tokens": (True,),
}


@dataclass(frozen=True)
class TextSettings:
    """Settings for tokenizing a text, in addition to those in the tokenizer's files.

    `max_length` is in tokens, including special ones, and replaces the tokenizer's `model_max_length`.
    `tokenizer_options` are keyword arguments of `AutoTokenizer.from_pretrained`.
    """

    max_length: int | None = None
    lower_case: bool = False
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)  # by name
    default_prompt_name: str = ""  # for requests that name no prompt; empty: no prompt

    def prompted(self, text: str, prompt_name: str | None = None) -> str:
        """The text that the tokenizer reads: the prompt of that name, then `text` (of a pair, the first text).

        None means the default prompt, an empty name no prompt. With the tokenizer of `set_up`, the
        reference's ids are those of `tokenizer(settings.prompted(text), pair, truncation="longest_first")`.
        """
        name = self.default_prompt_name if prompt_name is None else prompt_name
        return (self.prompts[name] if name else "") + text

    def set_up(self, tokenizer: Tokenizer) -> None:
        """Change a tokenizer, as loaded from its files, into the one that sentence-transformers uses."""
        if not self.lower_case or has_lowercase(tokenizer):
            return
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *normalizers_of(tokenizer)])


def has_lowercase(tokenizer: Tokenizer) -> bool:
    """Whether the library considers a tokenizer to lower-case already: BERT's own normalizer does not count."""
    return any(isinstance(each, normalizers.Lowercase) for each in normalizers_of(tokenizer))


def normalizers_of(tokenizer: Tokenizer) -> list[normalizers.Normalizer]:
    """The normalizers of a tokenizer, in order."""
    found = tokenizer.normalizer
    if isinstance(found, normalizers.Sequence):
        return [found[number] for number in range(len(found))]
    return [] if found is None else [found]


def read(
    directory: Path, encoder: Path, *, task: str, output: str, always: Mapping[str, str] | None = None
) -> TextSettings:
    """The settings of the model in `directory` whose encoder is in the folder `encoder`.

    `task` and `output` are the library's names of the encoder's task and output (`last_hidden_state` or `logits`);
    `always` are prompts that every model has. ExportError names the file and the key of an unknown setting.
    """
    path, settings = transformer_settings(encoder)
    prompts, default_prompt_name = read_prompts(directory / LIBRARY_SETTINGS, always or {})
    if unknown := sorted(settings.keys() - {*READ, *WITHOUT_EFFECT}):
        known = ", ".join(READ)
        raise ExportError(f"{path}: found {', '.join(unknown)}, which changes the meaning of texts; expected {known}")
    check_task(path, settings, task=task, output=output)
    check_arguments(path, "model", {**settings.get("model_args", {}), **settings.get("model_kwargs", {})})
    check_arguments(path, "config", {**settings.get("config_args", {}), **settings.get("config_kwargs", {})})
    options = {**settings.get("tokenizer_args", {}), **settings.get("processor_kwargs", {})}
    options.pop("trust_remote_code", None)
    lengths = {
        "processing_kwargs.max_length": processing_length(path, settings.get("processing_kwargs") or {}),
        "model_max_length": options.pop("model_max_length", None),
        "max_seq_length": settings.get("max_seq_length"),
    }
    return TextSettings(
        max_length=first_length(path, lengths),
        lower_case=bool(settings.get("do_lower_case")),
        tokenizer_options=options,
        prompts=prompts,
        default_prompt_name=default_prompt_name,
    )


def first_length(path: Path, lengths: Mapping[str, Any]) -> int | None:
    """The first length that is set, in tokens. ExportError if it is not a length."""
    for key, found in lengths.items():
        if found is None:
            continue
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ExportError(f"{path}: {key} is {found!r}, expected a number of tokens, 1 or more, or null")
        return found
    return None


def transformer_settings(encoder: Path) -> tuple[Path, dict[str, Any]]:
    """The first settings file that is not empty, in the library's order, and its contents."""
    for name in TRANSFORMER_SETTINGS:
        if found := read_json(encoder / name):
            return encoder / name, found
    return encoder / TRANSFORMER_SETTINGS[0], {}


def read_prompts(path: Path, always: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """The prompts by name, and the name of the default prompt. ExportError if there is no such prompt."""
    config = read_json(path)
    stated = config.get("prompts") or {}
    if not isinstance(stated, dict):
        raise ExportError(f"{path}: prompts is {json.dumps(stated)}, expected an object of texts by their names")
    prompts = {name: prompt or "" for name, prompt in {**always, **stated}.items()}
    if prompts.pop("", ""):
        raise ExportError(f"{path}: prompts[''] is {json.dumps(stated[''])}, expected a name: '' stands for no prompt")
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        known = ", ".join(prompts) or "nothing"
        raise ExportError(f"{path}: default_prompt_name is {default!r}, expected one of the prompts ({known}) or null")
    for name, prompt in prompts.items():
        if not isinstance(prompt, str):
            raise ExportError(f"{path}: prompts[{name!r}] is {json.dumps(prompt)}, expected text")
    return prompts, default or ""


def check_task(path: Path, settings: Mapping[str, Any], *, task: str, output: str) -> None:
    """ExportError if the library would use another output of the encoder than the graph computes."""
    found = settings.get("transformer_task", "feature-extraction")
    if found != task and "transformer_task" in settings:
        raise ExportError(f"{path}: transformer_task is {found!r}, expected {task!r} of this kind of model")
    modalities = settings.get("modality_config")
    if modalities is None:
        return
    read_as = modalities.get("text") or {}
    if "message" in modalities or (read_as.get("method"), read_as.get("method_output_name")) != ("forward", output):
        found = json.dumps(modalities)
        raise ExportError(f"{path}: modality_config is {found}, expected text with forward and {output} alone")


def check_arguments(path: Path, kind: str, arguments: Mapping[str, Any]) -> None:
    """ExportError for arguments that would load another model or configuration."""
    known = MODEL_ARGUMENTS if kind == "model" else CONFIG_ARGUMENTS
    if unknown := sorted(arguments.keys() - set(known)):
        raise ExportError(
            f"{path}: {kind}_kwargs has {', '.join(unknown)}, expected {', '.join(known)} at most: write its "
            "changes into config.json"
        )


def processing_length(path: Path, processing: Mapping[str, Any]) -> Any:
    """The truncation length in tokens; ExportError for other arguments of the tokenizer's call."""
    arguments = {**(processing.get("common") or {}), **(processing.get("text") or {})}
    for name, value in arguments.items():
        if name not in PROCESSING or (PROCESSING[name] is not None and value not in (PROCESSING[name] or ())):
            raise ExportError(
                f"{path}: processing_kwargs has {name}={value!r}, expected {', '.join(PROCESSING)} at most, with "
                "truncation longest_first and special tokens added"
            )
    return arguments.get("max_length")
