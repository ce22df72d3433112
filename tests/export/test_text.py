"""The tokenizer that travels with an artifact cuts texts as transformers does."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer

from export.errors import ExportError
from export.inputs import tokenizer as text
from export.inputs.text_settings import TextSettings
from tests.variants import roberta_tokenizer

SENTENCES = ["The statement RAISES an exception.", "A list, typically: naïve café!", "unseen wörds 好 12", ""]


def read(directory: Path, **changes: object) -> text.Text:
    options = {"vocabulary": 400, "positions": 64, "segments": 2, "task": "fill-mask", "settings": TextSettings()}
    return text.read(directory, model=directory, **options | changes)  # type: ignore[arg-type]


def bert_words(directory: Path, checkpoints: dict[str, Path]) -> list[str]:
    """A directory with a word list alone, as old checkpoints have it."""
    vocabulary = Tokenizer.from_file(str(checkpoints["bert"] / "tokenizer.json")).get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")
    return words


@pytest.mark.parametrize("lower", [True, False])
def test_word_pieces_are_built_from_a_word_list(lower: bool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    bert_words(tmp_path, checkpoints)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    expected = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), do_lower_case=lower)
    found = Tokenizer.from_str(read(tmp_path).tokenizer)
    for sentence in SENTENCES:
        assert found.encode(sentence).ids == expected(sentence)["input_ids"]


def test_byte_pairs_are_built_from_a_word_list_and_merges(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    original = Tokenizer.from_file(str(checkpoints["gpt"] / "tokenizer.json"))
    original.model.save(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]
    found = read(tmp_path, task="generate")
    built = Tokenizer.from_str(found.tokenizer)
    for sentence in [*SENTENCES, "a<|endoftext|>b"]:
        assert built.encode(sentence).ids == original.encode(sentence).ids
        assert built.decode(built.encode(sentence).ids) == original.decode(original.encode(sentence).ids)
    assert found.manifest.end_ids == [0]


def test_robertas_words_are_built_with_a_mask_that_takes_the_space_before_it(tmp_path: Path) -> None:
    original = roberta_tokenizer()
    original.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>"}))
    words = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps(words | {"<mask>": len(words)}))
    found = read(tmp_path, vocabulary=410)
    built = Tokenizer.from_str(found.tokenizer)
    for sentence in [*SENTENCES, "A  <mask> is<mask>", "<mask>", "a</s>b"]:
        assert built.encode(sentence).ids == original.encode(sentence).ids
        assert built.decode(built.encode(sentence).ids) == original.decode(original.encode(sentence).ids)
    assert (found.manifest.pad_id, found.manifest.mask_id) == (1, original.token_to_id("<mask>"))


def test_truncation_and_padding_are_left_to_the_server(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoints["bert"] / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_str(read(tmp_path).tokenizer)
    assert found.truncation is None
    assert found.padding is None


@pytest.mark.parametrize(
    ("positions", "longest", "stated", "expected"),
    [(64, None, None, 64), (64, 32, None, 32), (512, None, 128, 128), (512, 256, 10**30, 256)],
)
def test_the_smallest_bound_on_the_length_holds(
    positions: int, longest: int | None, stated: int | None, expected: int, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copy(checkpoints["bert"] / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": stated} if stated else {}))
    assert read(tmp_path, positions=positions, settings=TextSettings(longest=longest)).manifest.max_length == expected


def test_a_special_token_may_be_given_as_an_object(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(checkpoints["bert"] / "tokenizer.json", tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": {"content": "[MASK]", "lstrip": True}}))
    assert read(tmp_path).manifest.mask_id == 4


def test_the_model_says_which_token_ends_a_text(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(checkpoints["gpt"] / "tokenizer.json", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    assert read(tmp_path, task="generate").manifest.end_ids == [5]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert read(tmp_path, task="generate").manifest.end_ids == [7]


def test_a_tokenizer_of_another_model_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="found token ids up to .*, expected less than the model's 100"):
        read(checkpoints["bert"], vocabulary=100)


def test_filling_masks_needs_a_mask(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="found no mask token"):
        read(checkpoints["gpt"])
