"""From a text to tokens: the source's tokenizer as one file, and what the server has to know beside it.

`tokenizer.json` is taken as it is, without its truncation and padding, which are the server's to decide. Older
checkpoints have word lists only; from these the same tokenizer is built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.implementations.byte_level_bpe import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing

from export.errors import ExportError
from export.files import read_json
from export.inputs import characters
from export.inputs.text_settings import TextSettings
from export.layout import CHARACTERS
from protos.artifact import TOKENIZER
from protos.manifest_pb2 import TextInput

# What these are called where no file says it.
USUAL = {"pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"), "eos": ("<|endoftext|>", "</s>")}
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class Text:
    """A tokenizer as the text of its file, and the manifest's account of it."""

    tokenizer: str
    manifest: TextInput


def read(
    path: Path,
    *,
    model: Path | None,
    vocabulary: int,
    positions: int,
    segments: int,
    task: str,
    settings: TextSettings,
) -> Text:
    """The tokenizer in a directory or a file, as the settings change it, for a model of these sizes.

    `model` is the directory in which the model's own files say more. ExportError if there is no tokenizer, if it does
    not fit the vocabulary, or if fill-mask has no mask token.
    """
    tokenizer = load(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    settings.set_up(tokenizer)
    count = max(tokenizer.get_vocab().values()) + 1
    if is_letters(path) and count != vocabulary:
        raise ExportError(f"{path}: found {count} letters, expected the model's {vocabulary}")
    if count > vocabulary:
        raise ExportError(f"tokenizer: found token ids up to {count - 1}, expected less than the model's {vocabulary}")
    directory = path if path.is_dir() else path.parent
    names = {kind: special(directory, tokenizer, kind) for kind in USUAL}
    mask, end = names["mask"], end_id(model, names["eos"])
    if task == "fill-mask" and mask is None:
        raise ExportError("tokenizer: found no mask token, expected one for fill-mask")
    manifest = TextInput(
        tokenizer=TOKENIZER,
        vocabulary=vocabulary,
        max_length=min(positions, settings.longest or stated_length(model) or positions),
        segments=segments,
        pad_id=names["pad"] or 0,
        prompts=settings.prompts,
        default_prompt_name=settings.default_prompt_name,
    )
    if task == "fill-mask" and mask is not None:
        manifest.mask_id = mask
    if task == "generate" and end is not None:
        manifest.end_ids.append(end)
    return Text(tokenizer.to_str(), manifest)


def load(path: Path) -> Tokenizer:
    """The tokenizer that a file, or the files of a directory, describe."""
    try:
        for name, readable in READERS.items():
            if (path / name).is_file():
                return readable(path)
        if path.is_file():
            return characters.read(path) if is_letters(path) else Tokenizer.from_file(str(path))
    except ExportError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ExportError(f"tokenizer: its files cannot be read: {error}") from error
    raise ExportError(
        "tokenizer: found none, expected tokenizer.json, vocab.txt (BERT), or vocab.json and merges.txt (GPT-2, "
        "RoBERTa); --tokenizer names another directory, a file or a hub id"
    )


def is_letters(path: Path) -> bool:
    """Whether the tokenizer of a nanoGPT is to be read: its vocabulary is the model's, to the letter."""
    return path.suffix == ".pkl"


def word_pieces(directory: Path) -> Tokenizer:
    """BERT's: words cut into pieces, between [CLS] and [SEP]."""
    config = read_json(directory / "tokenizer_config.json")
    tokens = {f"{kind}_token": config.get(f"{kind}_token") for kind in ("unk", "sep", "cls", "pad", "mask")}
    special: dict[str, Any] = {name: content(token) for name, token in tokens.items() if token}
    tokenizer = BertWordPieceTokenizer(
        str(directory / "vocab.txt"),
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
        **special,
    )
    return Tokenizer.from_str(tokenizer.to_str())


def byte_pairs(directory: Path) -> Tokenizer:
    """Pairs of bytes that are often seen together: GPT-2's with nothing around them, RoBERTa's between <s> and </s>."""
    config = read_json(directory / "tokenizer_config.json")
    tokenizer = ByteLevelBPETokenizer(
        str(directory / "vocab.json"),
        str(directory / "merges.txt"),
        add_prefix_space=config.get("add_prefix_space", False),
    )
    words = tokenizer.get_vocab()
    end = content(config.get("eos_token") or USUAL["eos"][0])
    if end in words:  # else it would be read as letters
        tokenizer.add_special_tokens([end])
    if set(ROBERTA) <= words.keys():
        # The mask takes the space before it along: the words that may stand there have theirs inside.
        tokenizer.add_special_tokens([*ROBERTA, AddedToken("<mask>", lstrip=True)])
        begin, end_of_text = (("<s>", words["<s>"]), ("</s>", words["</s>"]))
        tokenizer.post_processor = RobertaProcessing(end_of_text, begin)
    return Tokenizer.from_str(tokenizer.to_str())


# Files by which a directory's tokenizer is known, the fullest first.
READERS: dict[str, Callable[[Path], Tokenizer]] = {
    "tokenizer.json": lambda directory: Tokenizer.from_file(str(directory / "tokenizer.json")),
    "vocab.txt": word_pieces,
    "merges.txt": byte_pairs,
    CHARACTERS: lambda directory: characters.read(directory / CHARACTERS),
}


def content(token: Any) -> str:
    """A special token's text; files have it bare or as an object."""
    return str(token["content"] if isinstance(token, dict) else token)


def special(directory: Path, tokenizer: Tokenizer, kind: str) -> int | None:
    """The id of the token that is called `kind`_token; None if there is none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(directory / name).get(f"{kind}_token")
        if token:
            return tokenizer.token_to_id(content(token))
    ids = (tokenizer.token_to_id(token) for token in USUAL[kind])
    return next((found for found in ids if found is not None), None)


def end_id(directory: Path | None, of_tokenizer: int | None) -> int | None:
    """The token that ends a text. The model's word counts more than the tokenizer's."""
    if directory is None:
        return of_tokenizer
    for name in ("generation_config.json", "config.json"):
        found = read_json(directory / name).get("eos_token_id")
        if isinstance(found, list):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return of_tokenizer


def stated_length(directory: Path | None) -> int | None:
    """The longest text the tokenizer's configuration knows of, in tokens. (Some say 10^30 for "no bound".)"""
    if directory is None:
        return None
    found = read_json(directory / "tokenizer_config.json").get("model_max_length")
    return int(found) if found else None
