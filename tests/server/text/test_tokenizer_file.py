"""Models with the same tokenizer share it; also a model that is loaded again."""

import shutil
from dataclasses import replace

import pytest

from server.artifact import read_artifact
from server.errors import BadArtifact
from server.text.tokenizer import TextEncoder
from server.text.tokenizer_file import TokenizerSettings, open_tokenizer

SETTINGS = TokenizerSettings(split_special_tokens=False)
TEXT = "A list is a mutable sequence."


@pytest.fixture
def file(exported):
    return exported("tiny-gpt") / "tokenizer.json"


def test_equal_files_with_equal_settings_share_a_tokenizer(file, tmp_path):
    shutil.copy(file, tmp_path)
    assert open_tokenizer(tmp_path / file.name, SETTINGS) is open_tokenizer(file, SETTINGS)


def test_other_settings_or_contents_give_another_tokenizer(file, tmp_path):
    truncating = open_tokenizer(file, replace(SETTINGS, max_length=2))
    assert len(truncating.encode(TEXT)) == 2 < len(open_tokenizer(file, SETTINGS).encode(TEXT))
    from_left = open_tokenizer(file, replace(SETTINGS, max_length=2, truncation_side="left"))
    assert from_left.encode(TEXT).ids != truncating.encode(TEXT).ids
    (tmp_path / "tokenizer.json").write_bytes(file.read_bytes() + b"\n")
    assert open_tokenizer(tmp_path / "tokenizer.json", SETTINGS) is not open_tokenizer(file, SETTINGS)


def test_a_file_that_is_replaced_is_read_again(file, tmp_path):
    replaced = tmp_path / "tokenizer.json"
    replaced.write_text("{}")
    with pytest.raises(BadArtifact, match="tokenizer.json"):
        open_tokenizer(replaced, SETTINGS)
    shutil.copy(file, replaced)
    assert open_tokenizer(replaced, SETTINGS).encode(TEXT).ids


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadArtifact, match=r"tokenizer\.json: No such file"):
        open_tokenizer(tmp_path / "tokenizer.json", SETTINGS)


def test_a_model_that_is_loaded_again_has_the_same_tokenizer(exported):
    artifact = read_artifact(exported("tiny-gpt"))
    first, second = TextEncoder(artifact), TextEncoder(artifact)
    assert first._tokenizer is second._tokenizer
    assert first._truncating is second._truncating is not first._tokenizer
