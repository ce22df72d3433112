"""Writes tokenizers of many kinds in the layouts of checkpoints: old layouts, contradicting settings, added tokens."""

import json
from collections.abc import Callable
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations import ByteLevelBPETokenizer

from tests.checkpoints import SPECIAL, TEXTS, byte_pairs, word_pieces
from tests.variants import roberta_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BERT_TOKENS = [
    *SPECIAL,
    *LETTERS,
    *LETTERS.upper(),
    *(f"##{letter}" for letter in LETTERS + LETTERS.upper()),
    *"0123456789.,!?'\"-<>[]|/éöäñ你好京한あ",
    *("the", "The", "list", "hello", "Hello", "café", "cafe", "##ing", "s", "##s"),
]
BYTE_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write(directory: Path, name: str, contents: object) -> None:
    (directory / name).write_text(json.dumps(contents, ensure_ascii=False), "utf-8")


def change_settings(directory: Path, **settings: object) -> None:
    """Change settings in tokenizer_config.json that tokenizer.json does not have."""
    path = directory / "tokenizer_config.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write(directory, path.name, found | settings)


def vocab_txt(directory: Path, **settings: object) -> None:
    """The first layout of BERT: vocab.txt, and a configuration with the model type."""
    tokens = list(dict.fromkeys(BERT_TOKENS))
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
    write(directory, "config.json", {"model_type": "bert"})
    if settings:
        change_settings(directory, **settings)


def contradicting_settings(directory: Path, **settings: object) -> None:
    """A tokenizer.json that lower-cases, and settings that contradict it."""
    vocab_txt(directory)
    transformers.BertTokenizer.from_pretrained(directory, do_lower_case=True).save_pretrained(directory)
    (directory / "vocab.txt").unlink(missing_ok=True)
    change_settings(directory, **settings)


def added_tokens(directory: Path) -> None:
    """Added tokens, also special ones, in the layout of transformers 3."""
    vocab_txt(directory)
    count = len(set(BERT_TOKENS))
    write(directory, "added_tokens.json", {"covidxq": count, "[E1]": count + 1})
    write(directory, "special_tokens_map.json", {"additional_special_tokens": ["[E1]"], "mask_token": "[MASK]"})


def added_tokens_decoder(directory: Path) -> None:
    """Added tokens in the layout of transformers 4 and 5."""
    vocab_txt(directory)
    tokenizer = transformers.BertTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([AddedToken("Xyz", single_word=True), AddedToken("naïve", lstrip=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[E2]"]})
    tokenizer.save_pretrained(directory)
    (directory / "vocab.txt").unlink(missing_ok=True)


def byte_level(directory: Path, family: str, special: list[str], **settings: object) -> None:
    """The first layout of GPT-2 and RoBERTa: vocab.json and merges.txt."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=380, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(directory))
    write(directory, "config.json", {"model_type": family})
    if settings:
        change_settings(directory, **settings)


def byte_level_file(directory: Path, **settings: object) -> None:
    """The tokenizer.json of GPT-2, and settings that it does not have."""
    byte_pairs().save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "gpt2"})
    change_settings(directory, **{"tokenizer_class": "GPT2Tokenizer"} | settings)


def roberta_file(directory: Path) -> None:
    roberta_tokenizer().save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "roberta"})


def distilbert(directory: Path) -> None:
    """A tokenizer.json with token types for pairs, and a model without token types."""
    word_pieces().save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "distilbert"})
    change_settings(directory, tokenizer_class="DistilBertTokenizer", model_input_names=["input_ids", "attention_mask"])


def special_names_as_ordinary_tokens(directory: Path) -> None:
    """A vocabulary with <s>, </s> and <mask> as ordinary tokens."""
    tokens = ["[UNK]", "[PAD]", "<s>", "</s>", "<mask>", "hello", "list", "the", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [PAD]", pair="$A [PAD] $B:1 [PAD]:1", special_tokens=[("[PAD]", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "bert"})
    change_settings(directory, tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]", unk_token="[UNK]")


KINDS: dict[str, Callable[[Path], None]] = {
    "vocab.txt": vocab_txt,
    "vocab.txt, cased": lambda directory: vocab_txt(directory, do_lower_case=False),
    "vocab.txt, accents kept": lambda directory: vocab_txt(directory, strip_accents=False),
    "vocab.txt, Chinese kept whole": lambda directory: vocab_txt(directory, tokenize_chinese_chars=False),
    "vocab.txt, cut on the left": lambda directory: vocab_txt(directory, truncation_side="left"),
    "vocab.txt, special tokens as text": lambda directory: vocab_txt(directory, split_special_tokens=True),
    "vocab.txt, spaces cleaned up": lambda directory: vocab_txt(directory, clean_up_tokenization_spaces=True),
    "cased, contradicting the file": lambda directory: contradicting_settings(directory, do_lower_case=False),
    "accents kept, contradicting the file": lambda directory: contradicting_settings(directory, strip_accents=False),
    "added_tokens.json": added_tokens,
    "added_tokens_decoder": added_tokens_decoder,
    "byte pairs of GPT-2": lambda directory: byte_level(directory, "gpt2", ["<|endoftext|>"]),
    "byte pairs of GPT-2, bos added": lambda directory: byte_level(
        directory, "gpt2", ["<|endoftext|>"], add_bos_token=True
    ),
    "byte pairs of GPT-2, space added": lambda directory: byte_level(
        directory, "gpt2", ["<|endoftext|>"], add_prefix_space=True
    ),
    "space added, contradicting the file": lambda directory: byte_level_file(directory, add_prefix_space=True),
    "bos added, contradicting the file": lambda directory: byte_level_file(directory, add_bos_token=True),
    "padding token that the file does not have": lambda directory: byte_level_file(directory, pad_token="[PAD]"),
    "byte pairs of RoBERTa": lambda directory: byte_level(directory, "roberta", BYTE_SPECIAL),
    "byte pairs of RoBERTa, space added": lambda directory: byte_level(
        directory, "roberta", BYTE_SPECIAL, add_prefix_space=True
    ),
    "RoBERTa's tokenizer.json": roberta_file,
    "no token types": distilbert,
    "special names as ordinary tokens": special_names_as_ordinary_tokens,
}
