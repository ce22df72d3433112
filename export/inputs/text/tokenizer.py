"""From a text to tokens: the source's tokenizer as transformers reads it, and what the server has to know beside it.

`AutoTokenizer` decides which files count and what they mean. What it made is stored in the format of the `tokenizers`
library, without truncation and padding, which are the server's to decide. Knows no graph and writes no file.
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
from protos.artifact import TOKENIZER
from protos.manifest_pb2 import TextInput

MODEL_TYPES = {"gpt": "gpt2", "nanogpt": "gpt2"}  # what transformers calls a family where it has another name
NAMED = 5  # tokens that a remark lists
PAIRED = "classify-text"  # the task that reads pairs of texts
EXPECTED = (
    "expected a tokenizer that transformers loads in its fast form: tokenizer.json, vocab.txt (BERT), or vocab.json "
    "and merges.txt (GPT-2, RoBERTa); --tokenizer names another directory, a file or a hub id"
)


@dataclass(frozen=True)
class Text:
    """A tokenizer as the text of its file, the manifest's account of it, and what it was made from.

    `reference` is a tokenizer of transformers, or the letters of nanoGPT with their numbers.
    """

    tokenizer: str
    manifest: TextInput
    reference: Any
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a tokenizer is read for: the sizes of the model, its task, and the family by which transformers knows it.

    `settings` are those of sentence-transformers, which change the tokenizer.
    """

    family: str
    task: str
    vocabulary: int
    positions: int
    segments: int = 0
    settings: TextSettings = TextSettings()


def read(path: Path, model: Path | None, needs: Needs) -> Text:
    """The tokenizer in a directory or a file; `model` is the directory in which the model's own files say more.

    ExportError if there is no tokenizer, if transformers has it in no fast form, if it does not fit the vocabulary, or
    if fill-mask has no mask token.
    """
    letters = path if path.is_file() else path / CHARACTERS
    if letters.suffix == ".pkl" and letters.is_file():
        return read_letters(letters, needs)
    with quiet():
        reference = load(path, needs.family, needs.settings.tokenizer_options)
        needs.settings.set_up(reference.backend_tokenizer)
        tokenizer = serialised(reference)
    remarks = check_vocabulary(tokenizer, needs.vocabulary)
    manifest = TextInput(
        tokenizer=TOKENIZER,
        vocabulary=needs.vocabulary,
        max_length=longest(reference, needs, special=tokenizer.num_special_tokens_to_add(needs.task == PAIRED)),
        segments=needs.segments,
        truncation_side=reference.truncation_side,
        token_types=bool(needs.segments) and "token_type_ids" in reference.model_input_names,
        split_special_tokens=bool(reference.split_special_tokens),
        clean_up_spaces=cleans_up(reference),
        prompts=needs.settings.prompts,
        default_prompt_name=needs.settings.default_prompt_name,
    )
    if reference.pad_token_id is not None:
        manifest.pad_id = reference.pad_token_id
    if needs.task == "fill-mask":
        manifest.mask_id = mask_id(reference, needs.vocabulary)
    if needs.task == "generate":
        ends, dropped = end_ids(model, reference.eos_token_id, needs.vocabulary)
        manifest.end_ids.extend(ends)
        begin, dropped_begin = begin_id(model, reference.bos_token_id, needs.vocabulary)
        if begin is not None:
            manifest.begin_id = begin
        remarks += dropped + dropped_begin + sampling_left_out(model)
    return Text(tokenizer.to_str(), manifest, reference, remarks)


def read_letters(path: Path, needs: Needs) -> Text:
    """The letters of a nanoGPT: its vocabulary is the model's, to the letter."""
    letters = characters.read(path)
    count = max(letters.values(), default=-1) + 1
    if count != needs.vocabulary:
        raise ExportError(f"{path}: found {count} letters, expected the model's {needs.vocabulary}")
    manifest = TextInput(tokenizer=TOKENIZER, vocabulary=count, max_length=needs.positions, truncation_side="right")
    return Text(characters.tokenizer_of(letters).to_str(), manifest, letters)


def load(path: Path, family: str, options: Mapping[str, Any]) -> Any:
    """What transformers makes of a directory, of a tokenizer.json and the files beside it, or of a file of that format.

    `options` are arguments for AutoTokenizer that the source's own settings have. ExportError if transformers makes
    nothing of them, a tokenizer in Python alone, or one that no file describes.
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
    """The tokenizer that `make` gives; ExportError with its first line for whatever it raises."""
    try:
        return make()
    except BaseException as error:  # no common base: missing packages, broken files, unknown classes
        reraise_if_foreign(error)
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ExportError(
            f"tokenizer: its files cannot be read ({what}): transformers {transformers.__version__} says "
            f"{type(error).__name__}: {said}; {EXPECTED}"
        ) from error


def reraise_if_foreign(error: BaseException) -> None:
    """Let pass what is no error of a library: where the Rust code of tokenizers panics, it raises no `Exception`."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def model_config(directory: Path, family: str) -> Any:
    """The configuration by which AutoTokenizer chooses a class where no file beside the tokenizer names one."""
    config = read_json(directory / CONFIG)
    if config.get("model_type") or config.get("tokenizer_class") or (directory / TOKENIZER).is_file():
        return None
    if read_json(directory / TOKENIZER_CONFIG).get("tokenizer_class"):
        return None
    return transformers.AutoConfig.for_model(MODEL_TYPES.get(family, family))


def check_code(directory: Path) -> None:
    """ExportError if the tokenizer is code of the source's own: nothing that comes with a model is run."""
    found = read_json(directory / TOKENIZER_CONFIG).get("auto_map")
    code = found.get("AutoTokenizer") if isinstance(found, dict) else found
    if code:
        raise ExportError(
            f"{TOKENIZER_CONFIG}: auto_map names code of its own ({code}), which is never run; {EXPECTED}"
        )


def named_class(directory: Path) -> str:
    """Which class of tokenizer the files ask for, for a reader."""
    for name in (TOKENIZER_CONFIG, CONFIG):
        found = read_json(directory / name).get("tokenizer_class")
        if found:
            return f"{name}: tokenizer_class is {found!r}"
    return f"{TOKENIZER_CONFIG}: no tokenizer_class"


def check_files(directory: Path, reference: Any) -> None:
    """ExportError if none of the files is there that this class reads: transformers then makes an empty vocabulary."""
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
    """A copy of the library's own, without truncation and padding."""
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
    """A remark on the tokens for which the model has no row; ExportError if every text has such, or if most are so."""
    words = tokenizer.get_vocab(with_added_tokens=True)
    count = max(words.values(), default=-1) + 1
    outside = sorted((token for token, number in words.items() if number >= vocabulary), key=words.__getitem__)
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
    """The id of the mask token. ExportError if there is none that the model knows."""
    found = reference.mask_token_id
    if found is None:
        raise ExportError("tokenizer: found no mask token, expected one for fill-mask (mask_token)")
    if found >= vocabulary:
        raise ExportError(
            f"tokenizer: found the mask token {reference.mask_token!r} with the id {found}, expected less than the "
            f"model's {vocabulary}"
        )
    return int(found)


def longest(reference: Any, needs: Needs, *, special: int) -> int:
    """The longest text in tokens. Text that is generated is bounded by the model's positions alone.

    ExportError if the tokenizer states no length, or if the `special` tokens around every text need more.
    """
    if needs.task == "generate":
        return needs.positions
    where, found = "max_seq_length", needs.settings.longest
    if found is None:
        where, found = f"{TOKENIZER_CONFIG}: model_max_length", reference.model_max_length
    if not isinstance(found, int | float) or not found >= max(1, special):
        raise ExportError(
            f"{where}: found {found!r}, expected a number of tokens, at least the {special} special ones of every input"
        )
    return int(min(needs.positions, found))


def cleans_up(reference: Any) -> bool:
    """Whether transformers removes spaces before punctuation when it decodes: never for BPE, unless it is forced to."""
    forced = getattr(reference, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    is_bpe = type(reference.backend_tokenizer.model).__name__ == "BPE"
    return bool(reference.clean_up_tokenization_spaces and (forced or not is_bpe))


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings of transformers are for its own users; what matters here is refused."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
