"""The tokenizer that travels with an artifact is the one that transformers makes of the source's files."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export.errors import ExportError
from export.inputs.text import golden_texts, tokenizer
from export.inputs.text.text_settings import TextSettings
from export.inputs.text.tokenizer import LoadedTokenizer, ModelDescription
from tests.tokenizer_kinds import KINDS, byte_level, byte_level_file, change_settings, vocab_txt, write

MODEL = {"family": "bert", "task": "fill-mask", "vocabulary": 400, "positions": 64, "segments": 2}


def read(directory: Path, **changes: object) -> LoadedTokenizer:
    return tokenizer.read(directory, directory, ModelDescription(**MODEL | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_stored_as_transformers_reads_it(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    found = read(tmp_path, task="classify-text")
    assert len(golden_texts.make(found, "classify-text").texts) >= 16  # each of them compared
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert found.text_input.truncation_side == expected.truncation_side
    assert found.text_input.token_types == ("token_type_ids" in expected.model_input_names)
    stored = Tokenizer.from_str(found.json)
    assert (stored.truncation, stored.padding) == (None, None)


def test_truncation_and_padding_in_the_file_are_left_to_the_server(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    stored = Tokenizer.from_file(str(checkpoints["bert"] / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=16)
    stored.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"model_type": "bert"})
    found = Tokenizer.from_str(read(tmp_path).json)
    assert (found.truncation, found.padding) == (None, None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic"},
            "found BertJapaneseTokenizer .* has in Python alone",
        ),
        ({"tokenizer_class": "CanineTokenizer"}, "found CanineTokenizer .* in Python alone"),
        ({"tokenizer_class": "ByT5Tokenizer"}, "found ByT5Tokenizer .* in Python alone"),
        ({"tokenizer_class": "XLMTokenizer"}, "tokenizer_class is 'XLMTokenizer'"),
        ({"tokenizer_class": "NoSuchTokenizer"}, "tokenizer_class is 'NoSuchTokenizer'"),
        ({"tokenizer_class": "RobertaTokenizer"}, "found none, expected tokenizer.json or vocab.json and merges.txt"),
    ],
)
def test_a_class_without_a_fast_form_is_refused_by_name(settings: dict, said: str, tmp_path: Path) -> None:
    vocab_txt(tmp_path, **settings)
    with pytest.raises(ExportError, match=said) as refused:
        read(tmp_path)
    assert "--tokenizer names another directory" in str(refused.value)


@pytest.mark.parametrize("code", [{"AutoTokenizer": ["mine.Mine", None]}, ["mine.Mine", None]])
def test_a_tokenizer_with_code_is_refused(code: object, tmp_path: Path) -> None:
    vocab_txt(tmp_path, auto_map=code)
    with pytest.raises(
        ExportError, match=r"tokenizer_config.json: auto_map names code of its own .*mine.Mine.* never run"
    ):
        read(tmp_path)


def test_a_tokenizer_that_accepts_only_its_own_tokens_has_golden_texts_of_them(tmp_path: Path) -> None:
    letters = Tokenizer(models.WordLevel({letter: number for number, letter in enumerate("abcdefgh \n")}))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.decoder = decoders.Fuse()
    letters.save(str(tmp_path / "tokenizer.json"))
    found = read(tmp_path, family="nanogpt", task="generate", vocabulary=10)
    assert len(golden_texts.make(found, "generate").texts) >= 16


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_directory_without_a_vocabulary_is_refused(family: str, tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": family})
    with pytest.raises(ExportError, match="tokenizer: found none, expected tokenizer.json or vocab"):
        read(tmp_path)


def test_a_separate_tokenizer_is_read_for_the_family_of_the_model(tmp_path: Path) -> None:
    byte_level(tmp_path, "gpt2", ["<|endoftext|>"])
    (tmp_path / "config.json").unlink()
    found = tokenizer.read(tmp_path, None, ModelDescription(**MODEL | {"family": "nanogpt", "task": "generate"}))
    assert (list(found.text_input.end_ids), found.text_input.begin_id) == ([0], 0)


def test_a_file_of_any_name_may_be_the_tokenizer(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    shutil.copy(checkpoints["bert"] / "tokenizer.json", tmp_path / "mine.json")
    found = Tokenizer.from_str(read(tmp_path / "mine.json", task="classify-text").json)
    assert found.encode("The list").ids == Tokenizer.from_file(str(tmp_path / "mine.json")).encode("The list").ids


@pytest.mark.parametrize(
    ("positions", "longest", "stated", "expected"),
    [(64, None, None, 64), (64, 32, None, 32), (512, None, 128, 128), (512, 256, 10**30, 256), (512, 256, 128, 256)],
)
def test_the_length_is_that_of_sentence_transformers_or_of_the_tokenizer(
    positions: int, longest: int | None, stated: int | None, expected: int, tmp_path: Path
) -> None:
    vocab_txt(tmp_path, **({"model_max_length": stated} if stated else {}))
    assert (
        read(tmp_path, positions=positions, settings=TextSettings(max_length=longest)).text_input.max_length == expected
    )


@pytest.mark.parametrize("stated", [0, -1, 1, "64", float("nan")])
def test_a_length_without_room_for_the_special_tokens_is_refused(stated: object, tmp_path: Path) -> None:
    vocab_txt(tmp_path, model_max_length=stated)
    with pytest.raises(ExportError, match=f"tokenizer_config.json: model_max_length: found '?{stated}'?, expected a"):
        read(tmp_path)


@pytest.mark.parametrize("stated", [1e30, float("inf"), None])
def test_a_tokenizer_without_a_length_has_that_of_the_model(stated: object, tmp_path: Path) -> None:
    vocab_txt(tmp_path, model_max_length=stated)
    assert read(tmp_path).text_input.max_length == 64


def test_the_length_of_generated_text_is_that_of_the_model(tmp_path: Path) -> None:
    byte_level_file(tmp_path, model_max_length=16)
    assert read(tmp_path, task="generate").text_input.max_length == 64


@pytest.mark.parametrize(
    ("files", "ends", "begins", "remark"),
    [
        ({}, [0], 0, None),
        ({"config.json": {"eos_token_id": 5, "bos_token_id": 6}}, [5], 6, None),
        ({"config.json": {"eos_token_id": 5}, "generation_config.json": {"eos_token_id": [7, 8]}}, [7, 8], 0, None),
        (
            {"generation_config.json": {"eos_token_id": [7, 50256], "bos_token_id": 50256}},
            [7],
            None,
            "generation_config.json: eos_token_id: 50256 left out, the model has the ids 0 to 399",
        ),
        ({"config.json": {"eos_token_id": 50256}}, [], 0, "config.json: eos_token_id: 50256 left out"),
    ],
)
def test_the_manifest_has_every_end_token(
    files: dict, ends: list[int], begins: int | None, remark: str | None, tmp_path: Path
) -> None:
    byte_level_file(tmp_path, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    for name, contents in files.items():
        write(tmp_path, name, {"model_type": "gpt2"} | contents)
    found = read(tmp_path, task="generate")
    assert list(found.text_input.end_ids) == ends
    assert (found.text_input.begin_id if found.text_input.HasField("begin_id") else None) == begins
    assert (remark is None) == (not found.remarks)
    assert remark is None or remark in found.remarks[0]


@pytest.mark.parametrize("found", ["</s>", [1, "2"], True, -1])
def test_an_end_token_that_is_no_id_is_refused_with_its_file(found: object, tmp_path: Path) -> None:
    byte_level_file(tmp_path)
    write(tmp_path, "generation_config.json", {"eos_token_id": found})
    with pytest.raises(ExportError, match=r"generation_config.json: eos_token_id: found .*, expected a token id"):
        read(tmp_path, task="generate")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repetition_penalty": 1.3, "no_repeat_ngram_size": 2}, "repetition_penalty, no_repeat_ngram_size"),
        ({"bad_words_ids": [[5]], "min_length": 4, "do_sample": True}, "bad_words_ids, min_length"),
        ({"forced_eos_token_id": 0, "suppress_tokens": [1]}, "suppress_tokens, forced_eos_token_id"),
        ({"temperature": 1.0, "top_k": 50, "max_length": 20, "suppress_tokens": [], "min_p": None}, None),
    ],
)
def test_settings_of_generation_that_each_request_has_to_give_are_remarked_upon(
    settings: dict[str, object], named: str | None, tmp_path: Path
) -> None:
    byte_level_file(tmp_path)
    write(tmp_path, "generation_config.json", settings)
    said = f"generation_config.json: {named} not applied: each request says how its text is generated"
    assert read(tmp_path, task="generate").remarks == ([said] if named else [])


def test_tokens_beyond_the_model_are_remarked_upon(tmp_path: Path) -> None:
    byte_level_file(tmp_path, pad_token="[PAD]")
    found = read(tmp_path, task="generate")
    (remark,) = found.remarks
    assert "no row for 1 of its tokenizer's tokens: '[PAD]'; texts with them are refused" in remark
    assert found.text_input.pad_id == 400


def test_a_tokenizer_of_another_model_is_refused(checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ExportError, match="found token ids up to .*, expected less than the model's 90"):
        read(checkpoints["bert"], vocabulary=90)


def test_a_model_without_a_row_for_the_tokens_around_every_text_is_refused(tmp_path: Path) -> None:
    vocab_txt(tmp_path, cls_token="[NEW]")
    with pytest.raises(ExportError, match=r"'\[NEW\]' stand around every text"):
        read(tmp_path, vocabulary=len((tmp_path / "vocab.txt").read_text("utf-8").splitlines()))


def test_filling_masks_needs_a_mask_that_the_model_knows(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="found no mask token"):
        read(checkpoints["gpt"])
    vocab_txt(tmp_path, mask_token="<blank>")
    with pytest.raises(ExportError, match="found the mask token '<blank>' with the id"):
        read(tmp_path, vocabulary=len((tmp_path / "vocab.txt").read_text("utf-8").splitlines()))


def test_a_special_token_may_be_given_as_an_object(tmp_path: Path) -> None:
    vocab_txt(tmp_path)
    write(tmp_path, "special_tokens_map.json", {"mask_token": {"content": "[MASK]", "lstrip": True}})
    assert read(tmp_path).text_input.mask_id == 4


def test_nothing_that_transformers_warns_about_reaches_the_user(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    byte_level_file(tmp_path, clean_up_tokenization_spaces=True)
    change_settings(tmp_path, extra_setting=1)
    golden_texts.make(read(tmp_path, task="generate"), "generate")
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_that_does_more_than_its_file_says_is_refused(tmp_path: Path) -> None:
    vocab_txt(tmp_path)
    found = read(tmp_path)
    altered = json.loads(found.json)
    altered["normalizer"]["lowercase"] = False
    with pytest.raises(ExportError, match=r"golden text 0 .*: found token \d+ at position 1, expected \d+"):
        golden_texts.make(LoadedTokenizer(json.dumps(altered), found.text_input, found.reference), "fill-mask")


def test_a_tokenizer_that_decodes_by_more_than_its_file_says_is_refused(tmp_path: Path) -> None:
    """CLIP's strips white space in Python, behind the decoder of its file."""
    byte_level_file(tmp_path, tokenizer_class="CLIPTokenizer")
    found = read(tmp_path, family="gpt2", task="generate", vocabulary=500)
    said = "tokenizer: CLIPTokenizer does more than a tokenizer.json can say: golden text .* when decoded, expected .*"
    with pytest.raises(ExportError, match=f"{said} of transformers; .* --tokenizer names another directory"):
        golden_texts.make(found, "generate")


def test_a_file_at_which_the_tokenizers_library_panics_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The library then raises an error that is not an Exception."""
    contents = json.loads((checkpoints["bert"] / "tokenizer.json").read_text("utf-8"))
    write(tmp_path, "tokenizer.json", contents | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}})
    write(tmp_path, "config.json", {"model_type": "bert"})
    with pytest.raises(ExportError, match="its files cannot be read .* PanicException: Precompiled"):
        read(tmp_path)


def test_a_decoder_that_panics_is_refused(tmp_path: Path) -> None:
    byte_level_file(tmp_path)
    contents = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    strip = {"type": "Strip", "content": "t", "start": 1, "stop": 1}
    write(tmp_path, "tokenizer.json", contents | {"decoder": strip})
    change_settings(tmp_path, tokenizer_class="PreTrainedTokenizerFast")
    with pytest.raises(ExportError, match="its files cannot be read .*PanicException: slice index"):
        golden_texts.make(read(tmp_path, family="gpt2", task="generate"), "generate")
