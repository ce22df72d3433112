"""The tokenizers of the text models, trained on the corpus: lower-case WordPiece (BERT) and byte-level BPE (GPT)."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MASK, PADDING, UNKNOWN, FIRST, LAST = "[MASK]", "[PAD]", "[UNK]", "[CLS]", "[SEP]"
END_OF_TEXT = "<|endoftext|>"


def train_word_pieces(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """BERT's tokenizer: lower case, WordPiece, `[CLS]` before and `[SEP]` after each text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = [PADDING, UNKNOWN, FIRST, LAST, MASK]
    trainer = trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    first, last = (tokenizer.token_to_id(token) for token in (FIRST, LAST))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{FIRST} $A {LAST}",
        pair=f"{FIRST} $A {LAST} $B:1 {LAST}:1",
        special_tokens=[(FIRST, first), (LAST, last)],
    )
    return tokenizer


def train_byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """GPT-2's tokenizer: byte-level BPE, without special tokens around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
