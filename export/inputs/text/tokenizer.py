"""The source's tokenizer as transformers loads it, and the settings that the server needs beside it.

`AutoTokenizer` decides which files are read and what they mean. The result is stored in the format of the `tokenizers`
library, without truncation and padding, which the server does. This module knows no graph and writes no file.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from export.errors import ExportError
from export.inputs.text import characters
from export.inputs.text.generation_settings import begin_id, end_ids, sampling_left_out
from export.inputs.text.text_settings import TextSettings
from export.sources.json_files import read_json
from export.sources.layout import CHARACTERS, TOKENIZER_CONFIG
from export.sources.modules import CONFIG
from models.checkpoints.architectures import MODEL_TYPES
from protos.artifact import TOKENIZER
from protos.manifest_pb2 import TextInput

TOKENIZER_TYPES = MODEL_TYPES | {"nanogpt": "gpt2"}  # the model_type whose tokenizer a family has, if it differs
NAMED = 5  # tokens in a remark
PAIRED = "classify-text"  # the task with pairs of texts
EXPECTED = (
    "expected a tokenizer that transformers loads in its fast form: tokenizer.json, vocab.txt (BERT), or vocab.json "
    "and merges.txt (GPT-2, RoBERTa); --tokenizer names another directory, a file or a hub id"
)


@dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer for the artifact, and the source's own one."""

    json: str  # the contents of tokenizer.json
    text_input: TextInput  # the settings for the manifest
    reference: Any  # a tokenizer of transformers, or nanoGPT's dictionary of characters
    remarks: list[str] = field(default_factory=list)  # for the user


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The model that a tokenizer is read for: its family, its task and its sizes.

    `settings` are those of sentence-transformers, which change the tokenizer.
    """

    family: str
    task: str
    vocabulary: int
    positions: int
    segments: int = 0
    settings: TextSettings = TextSettings()


def read(path: Path, model_directory: Path | None, model: ModelDescription) -> LoadedTokenizer:
    """The tokenizer in a directory or a file; `model_directory` has the model's other settings.

    ExportError if there is no tokenizer, if transformers has no fast form of it, if it does not fit the vocabulary, or
    if fill-mask has no mask token.
    """
    characters_file = path if path.is_file() else path / CHARACTERS
    if characters_file.suffix == ".pkl" and characters_file.is_file():
        return read_characters(characters_file, model)
    with quiet():
        reference = load(path, model.family, model.settings.tokenizer_options)
        model.settings.set_up(reference.backend_tokenizer)
        tokenizer = serialised(reference)
    remarks = check_vocabulary(tokenizer, model.vocabulary)
    text_input = TextInput(
        tokenizer=TOKENIZER,
        vocabulary=model.vocabulary,
        max_length=max_length(reference, model, special=tokenizer.num_special_tokens_to_add(model.task == PAIRED)),
        segments=model.segments,
        truncation_side=reference.truncation_side,
        token_types=bool(model.segments) and "token_type_ids" in reference.model_input_names,
        split_special_tokens=bool(reference.split_special_tokens),
        clean_up_spaces=cleans_up(reference),
        prompts=model.settings.prompts,
        default_prompt_name=model.settings.default_prompt_name,
    )
    if reference.pad_token_id is not None:
        text_input.pad_id = reference.pad_token_id
    if model.task == "fill-mask":
        text_input.mask_id = mask_id(reference, model.vocabulary)
    if model.task == "generate":
        ends, dropped = end_ids(model_directory, reference.eos_token_id, model.vocabulary)
        text_input.end_ids.extend(ends)
        begin, dropped_begin = begin_id(model_directory, reference.bos_token_id, model.vocabulary)
        if begin is not None:
            text_input.begin_id = begin
        remarks += dropped + dropped_begin + sampling_left_out(model_directory)
    return LoadedTokenizer(tokenizer.to_str(), text_input, reference, remarks)


def read_characters(path: Path, model: ModelDescription) -> LoadedTokenizer:
    """nanoGPT's characters, whose number must be the size of the model's vocabulary."""
    numbers = characters.read(path)
    count = max(numbers.values(), default=-1) + 1
    if count != model.vocabulary:
        raise ExportError(f"{path}: found {count} characters, expected the model's {model.vocabulary}")
    text_input = TextInput(tokenizer=TOKENIZER, vocabulary=count, max_length=model.positions, truncation_side="right")
    return LoadedTokenizer(characters.tokenizer_of(numbers).to_str(), text_input, numbers)


def load(path: Path, family: str, options: Mapping[str, Any]) -> Any:
    """Load a directory, a tokenizer.json with the files beside it, or another file of that format with transformers.

    `options` are arguments of AutoTokenizer in the source's own settings. ExportError if transformers cannot load it,
    has it in Python only, or if its files are missing.
    """
    if path.is_file() and path.name != TOKENIZER:
        return loaded(partial(PreTrainedTokenizerFast, tokenizer_file=str(path)), path.name)
    directory = path if path.is_dir() else path.parent
    check_code(directory)
    config = model_config(directory, family)
    what = named_class(directory)
    arguments = {**options, **({"config": config} if config else {}), "local_files_only": True}
    arguments["trust_remote_code"] = False
    reference = loaded(partial(AutoTokenizer.from_pretrained, directory, **arguments), what)
    if not reference.is_fast:
        kind = type(reference).__name__
        raise ExportError(
            f"tokenizer: found {kind} ({what}), which transformers {transformers.__version__} has in Python alone; "
            + EXPECTED
        )
    check_files(directory, reference)
    return reference


def loaded(make: Callable[[], Any], what: str) -> Any:
    """The result of `make`; ExportError with the first line of any exception that it raises."""
    try:
        return make()
    except BaseException as error:  # no common base class: missing packages, broken files, unknown classes
        reraise_if_foreign(error)
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"tokenizer: its files cannot be read ({what}): transformers {transformers.__version__} says "
            f"{type(error).__name__}: {said}; {EXPECTED}"
        ) from error


def reraise_if_foreign(error: BaseException) -> None:
    """Raise `error` again unless it is an `Exception` or a panic in the Rust code of tokenizers.

    server/text/tokenizer_file.py has the same function, because neither package imports the other.
    """
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def model_config(directory: Path, family: str) -> Any:
    """The configuration from which AutoTokenizer chooses a class if no file beside the tokenizer names one."""
    config = read_json(directory / CONFIG)
    if config.get("model_type") or config.get("tokenizer_class") or (directory / TOKENIZER).is_file():
        return None
    if read_json(directory / TOKENIZER_CONFIG).get("tokenizer_class"):
        return None
    return transformers.AutoConfig.for_model(TOKENIZER_TYPES.get(family, family))


def check_code(directory: Path) -> None:
    """ExportError if the tokenizer is code in the source: no code that comes with a model is run."""
    found = read_json(directory / TOKENIZER_CONFIG).get("auto_map")
    code = found.get("AutoTokenizer") if isinstance(found, dict) else found
    if code:
        raise ExportError(
            f"{TOKENIZER_CONFIG}: auto_map names code of its own ({code}), which is never run; {EXPECTED}"
        )


def named_class(directory: Path) -> str:
    """The tokenizer class that the files name, for an error text."""
    for name in (TOKENIZER_CONFIG, CONFIG):
        found = read_json(directory / name).get("tokenizer_class")
        if found:
            return f"{name}: tokenizer_class is {found!r}"
    return f"{TOKENIZER_CONFIG}: no tokenizer_class"


def check_files(directory: Path, reference: Any) -> None:
    """ExportError if the files of this class are missing: transformers would make an empty vocabulary."""
    wanted = [name for name in reference.vocab_files_names.values() if name != TOKENIZER]
    versions = read_json(directory / TOKENIZER_CONFIG).get("fast_tokenizer_files") or []
    if any((directory / name).is_file() for name in (TOKENIZER, *versions)):
        return
    if not wanted or not all((directory / name).is_file() for name in wanted):
        kind, others = type(reference).__name__, f" or {' and '.join(wanted)}" if wanted else ""
        raise ExportError(
            f"tokenizer: found none, expected {TOKENIZER}{others} for {kind} ({named_class(directory)}); {EXPECTED}"
        )


def serialised(reference: Any) -> Tokenizer:
    """A copy of the tokenizer without truncation and padding."""
    try:
        tokenizer = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    except Exception as error:  # parts written in Python cannot be serialised
        kind = type(reference).__name__
        raise ExportError(
            f"tokenizer: found {kind}, which cannot be written to a file ({error}); {EXPECTED}"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, vocabulary: int) -> list[str]:
    """A remark about tokens that the model has no row for; ExportError if every text or half of the tokens are such."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    count = max(vocab.values(), default=-1) + 1
    outside = sorted((token for token, number in vocab.items() if number >= vocabulary), key=vocab.__getitem__)
    around = [token for token in tokenizer.encode("").tokens if token in outside]
    if around or count >= 2 * vocabulary:
        raise ExportError(
            f"tokenizer: found token ids up to {count - 1}, expected less than the model's {vocabulary}"
            + (f": {', '.join(map(repr, around))} stand around every text" if around else "")
        )
    if not outside:
        return []
    shown = ", ".join(repr(token) for token in outside[:NAMED]) + (", …" if len(outside) > NAMED else "")
    return [f"the model has no row for {len(outside)} of its tokenizer's tokens: {shown}; texts with them are refused"]


def mask_id(reference: Any, vocabulary: int) -> int:
    """The id of the mask token. ExportError if there is none, or if the model does not know it."""
    found = reference.mask_token_id
    if found is None:
        raise ExportError("tokenizer: found no mask token, expected one for fill-mask (mask_token)")
    if found >= vocabulary:
        raise ExportError(
            f"tokenizer: found the mask token {reference.mask_token!r} with the id {found}, expected less than the "
            f"model's {vocabulary}"
        )
    return int(found)


def max_length(reference: Any, model: ModelDescription, *, special: int) -> int:
    """The maximum length of a text in tokens. For generation it is the number of the model's positions.

    ExportError if the tokenizer has no length, or if it is less than the number of `special` tokens of every text.
    """
    if model.task == "generate":
        return model.positions
    where, found = "max_seq_length", model.settings.max_length
    if found is None:
        where, found = f"{TOKENIZER_CONFIG}: model_max_length", reference.model_max_length
    if not isinstance(found, int | float) or not found >= max(1, special):
        raise ExportError(
            f"{where}: found {found!r}, expected a number of tokens, at least the {special} special ones of every input"
        )
    return int(min(model.positions, found))


def cleans_up(reference: Any) -> bool:
    """Whether transformers removes spaces before punctuation when it decodes: for BPE only if a setting forces it."""
    forced = getattr(reference, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    is_bpe = type(reference.backend_tokenizer.model).__name__ == "BPE"
    return bool(reference.clean_up_tokenization_spaces and (forced or not is_bpe))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings of transformers; an export refuses what it does not understand."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
