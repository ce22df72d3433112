"""From a text to tokens: the source's tokenizer as one file, and what the server has to know beside it.

`tokenizer.json` is taken as it is, without its truncation and padding, which are the server's to decide. Older
checkpoints have word lists only; from these the same tokenizer is built.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.implementations.byte_level_bpe import ByteLevelBPETokenizer

from export.errors import ExportError
from export.files import read_json
from protos.manifest_pb2 import TextInput

FILE = "tokenizer.json"
# What these are called where no file says it.
USUAL = {"pad": ("[PAD]", "<pad>"), "mask": ("[MASK]", "<mask>"), "eos": ("<|endoftext|>", "</s>")}


@dataclass(frozen=True)
class Text:
    """A tokenizer as the text of its file, and the manifest's account of it."""

    tokenizer: str
    manifest: TextInput


def read(directory: Path, *, vocabulary: int, positions: int, segments: int, task: str, longest: int | None) -> Text:
    """The tokenizer of a source, for a model of these sizes; `longest` bounds texts below `positions`, in tokens.

    ExportError if there is none, if it does not fit the vocabulary, or if fill-mask has no mask token.
    """
    tokenizer = load(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    count = max(tokenizer.get_vocab().values()) + 1
    if count > vocabulary:
        raise ExportError(f"tokenizer: found token ids up to {count - 1}, expected less than the model's {vocabulary}")
    names = {kind: special(directory, tokenizer, kind) for kind in USUAL}
    mask, end = names["mask"], end_id(directory, names["eos"])
    if task == "fill-mask" and mask is None:
        raise ExportError("tokenizer: found no mask token, expected one for fill-mask")
    manifest = TextInput(
        tokenizer=FILE,
        vocabulary=vocabulary,
        max_length=min(positions, longest or positions, stated_length(directory) or positions),
        segments=segments,
        pad_id=names["pad"] or 0,
    )
    if task == "fill-mask" and mask is not None:
        manifest.mask_id = mask
    if task == "generate" and end is not None:
        manifest.end_id = end
    return Text(tokenizer.to_str(), manifest)


def load(directory: Path) -> Tokenizer:
    """The tokenizer that the files of a directory describe."""
    try:
        if (directory / "tokenizer.json").is_file():
            return Tokenizer.from_file(str(directory / "tokenizer.json"))
        if (directory / "vocab.txt").is_file():
            return word_pieces(directory)
        if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            return byte_pairs(directory)
    except ExportError:
        raise
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ExportError(f"tokenizer: its files cannot be read: {error}") from error
    raise ExportError(
        "tokenizer: found none, expected tokenizer.json, vocab.txt (BERT), or vocab.json and merges.txt (GPT-2)"
    )


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
    """GPT-2's: pairs of bytes that are often seen together, with nothing around them."""
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
    return Tokenizer.from_str(tokenizer.to_str())


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


def end_id(directory: Path, of_tokenizer: int | None) -> int | None:
    """The token that ends a text. The model's word counts more than the tokenizer's."""
    for name in ("generation_config.json", "config.json"):
        found = read_json(directory / name).get("eos_token_id")
        if isinstance(found, list):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return of_tokenizer


def stated_length(directory: Path) -> int | None:
    """The longest text the tokenizer's configuration knows of, in tokens. (Some say 10^30 for "no bound".)"""
    found = read_json(directory / "tokenizer_config.json").get("model_max_length")
    return int(found) if found else None
