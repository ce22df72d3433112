"""Directories with tokenizers of many kinds, as checkpoints have them: old layouts, contradictions, additions."""

import json
from collections.abc import Callable
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from tokenizers.implementations import ByteLevelBPETokenizer

from tests.checkpoints import SPECIAL, TEXTS, byte_pairs, word_pieces
from tests.variants import roberta_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BERT_WORDS = [
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


def change(directory: Path, **settings: object) -> None:
    """Settings in tokenizer_config.json that tokenizer.json knows nothing of."""
    path = directory / "tokenizer_config.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write(directory, path.name, found | settings)


def word_list(directory: Path, **settings: object) -> None:
    """BERT's first layout: vocab.txt, and a configuration that names the family."""
    words = list(dict.fromkeys(BERT_WORDS))
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    write(directory, "config.json", {"model_type": "bert"})
    if settings:
        change(directory, **settings)


def contradicted(directory: Path, **settings: object) -> None:
    """A tokenizer.json that lower-cases, and settings that say otherwise."""
    word_list(directory)
    transformers.BertTokenizer.from_pretrained(directory, do_lower_case=True).save_pretrained(directory)
    (directory / "vocab.txt").unlink(missing_ok=True)
    change(directory, **settings)


def added_tokens(directory: Path) -> None:
    """Added tokens in the layout of transformers 3, special ones among them."""
    word_list(directory)
    count = len(set(BERT_WORDS))
    write(directory, "added_tokens.json", {"covidxq": count, "[E1]": count + 1})
    write(directory, "special_tokens_map.json", {"additional_special_tokens": ["[E1]"], "mask_token": "[MASK]"})


def added_tokens_decoder(directory: Path) -> None:
    """Added tokens in the layout of transformers 4 and 5."""
    word_list(directory)
    tokenizer = transformers.BertTokenizer.from_pretrained(directory)
    tokenizer.add_tokens([AddedToken("Xyz", single_word=True), AddedToken("naïve", lstrip=True)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[E2]"]})
    tokenizer.save_pretrained(directory)
    (directory / "vocab.txt").unlink(missing_ok=True)


def byte_level(directory: Path, family: str, special: list[str], **settings: object) -> None:
    """GPT-2's and RoBERTa's first layout: vocab.json and merges.txt."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(TEXTS, vocab_size=380, special_tokens=special, show_progress=False)
    tokenizer.save_model(str(directory))
    write(directory, "config.json", {"model_type": family})
    if settings:
        change(directory, **settings)


def byte_level_file(directory: Path, **settings: object) -> None:
    """GPT-2's tokenizer.json, and settings that it knows nothing of."""
    byte_pairs().save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "gpt2"})
    change(directory, **{"tokenizer_class": "GPT2Tokenizer"} | settings)


def roberta_file(directory: Path) -> None:
    roberta_tokenizer().save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "roberta"})


def distilbert(directory: Path) -> None:
    """Pairs have token types in the file, and none for a model that does not take them."""
    word_pieces().save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "distilbert"})
    change(directory, tokenizer_class="DistilBertTokenizer", model_input_names=["input_ids", "attention_mask"])


def words_like_robertas(directory: Path) -> None:
    """A vocabulary that merely contains <s>, </s> and <mask>, which mean nothing here."""
    words = ["[UNK]", "[PAD]", "<s>", "</s>", "<mask>", "hello", "list", "the", *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [PAD]", pair="$A [PAD] $B:1 [PAD]:1", special_tokens=[("[PAD]", 1)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    write(directory, "config.json", {"model_type": "bert"})
    change(directory, tokenizer_class="PreTrainedTokenizerFast", pad_token="[PAD]", unk_token="[UNK]")


KINDS: dict[str, Callable[[Path], None]] = {
    "word list": word_list,
    "word list, cased": lambda directory: word_list(directory, do_lower_case=False),
    "word list, accents kept": lambda directory: word_list(directory, strip_accents=False),
    "word list, Chinese kept whole": lambda directory: word_list(directory, tokenize_chinese_chars=False),
    "word list, cut on the left": lambda directory: word_list(directory, truncation_side="left"),
    "word list, special tokens as text": lambda directory: word_list(directory, split_special_tokens=True),
    "word list, spaces cleaned up": lambda directory: word_list(directory, clean_up_tokenization_spaces=True),
    "cased against the file": lambda directory: contradicted(directory, do_lower_case=False),
    "accents against the file": lambda directory: contradicted(directory, strip_accents=False),
    "added_tokens.json": added_tokens,
    "added_tokens_decoder": added_tokens_decoder,
    "byte pairs of GPT-2": lambda directory: byte_level(directory, "gpt2", ["<|endoftext|>"]),
    "byte pairs of GPT-2, bos added": lambda directory: byte_level(
        directory, "gpt2", ["<|endoftext|>"], add_bos_token=True
    ),
    "byte pairs of GPT-2, space added": lambda directory: byte_level(
        directory, "gpt2", ["<|endoftext|>"], add_prefix_space=True
    ),
    "space against the file": lambda directory: byte_level_file(directory, add_prefix_space=True),
    "bos against the file": lambda directory: byte_level_file(directory, add_bos_token=True),
    "padding token beyond the file": lambda directory: byte_level_file(directory, pad_token="[PAD]"),
    "byte pairs of RoBERTa": lambda directory: byte_level(directory, "roberta", BYTE_SPECIAL),
    "byte pairs of RoBERTa, space added": lambda directory: byte_level(
        directory, "roberta", BYTE_SPECIAL, add_prefix_space=True
    ),
    "RoBERTa's tokenizer.json": roberta_file,
    "no token types": distilbert,
    "words like RoBERTa's": words_like_robertas,
}
