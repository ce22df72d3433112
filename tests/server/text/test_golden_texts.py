"""The server encodes texts as transformers does, for tokenizers of every kind: golden texts and random texts."""

import json
import random
import shutil

import pytest
import transformers

from export.inputs.text import golden_texts, tokenizer
from export.inputs.text.tokenizer import ModelDescription
from protos.artifact import GOLDEN_TEXTS, TOKENIZER
from protos.manifest_pb2 import Manifest
from server.artifact import Artifact, read_artifact
from server.errors import BadArtifact
from server.text.golden_check import check_golden_texts
from server.text.tokenizer import TextEncoder
from tests.artifacts import change_manifest, read_fields, replace_file, unlist
from tests.checkpoints import PROMPTS
from tests.server.conftest import opened
from tests.tokenizer_kinds import KINDS

MOST = 24  # tokens
SCRIPTS = [(0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF)]
SCRIPTS += [(0x2000, 0x206F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0x0, 0x1F)]
WORDS = [
    "the",
    "The",
    "list",
    "hello",
    "HELLO",
    "café",
    "cafe\u0301",
    " ",
    "  ",
    "\n",
    "naïve",
    "Xyz",
    "covidxq",
    "你好",
]


def random_text(drawn, special):
    """Words, characters of one script, and special tokens, together in any order."""

    def part():
        match drawn.randrange(4):
            case 0:
                return drawn.choice(WORDS)
            case 1:
                return drawn.choice(special or WORDS)
            case 2:
                return " "
        first, last = drawn.choice(SCRIPTS)
        return "".join(chr(drawn.randint(first, last)) for _ in range(drawn.randint(1, 5)))

    return "".join(part() for _ in range(drawn.randint(0, 20)))


@pytest.fixture(scope="module", params=list(KINDS))
def read(request, tmp_path_factory):
    """A tokenizer of each kind: the library's own, and the server's over what the export stores."""
    directory, artifact = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("artifact")
    KINDS[request.param](directory)
    model = ModelDescription(family="bert", task="classify-text", vocabulary=500, positions=MOST, segments=2)
    found = tokenizer.read(directory, None, model)
    (artifact / TOKENIZER).write_text(found.json, "utf-8")
    for_text = golden_texts.make(found, "fill-mask")
    for_text.texts.extend(golden_texts.make(found, "classify-text").texts)
    (artifact / GOLDEN_TEXTS).write_bytes(golden_texts.to_json(for_text))
    manifest = Manifest(name="any", version=1, task="classify-text", text=found.text_input)
    manifest.golden.texts = len(for_text.texts)
    return transformers.AutoTokenizer.from_pretrained(directory), Artifact(artifact, manifest)


def test_golden_texts_of_every_kind_are_read_and_decoded_by_the_server(read):
    _, artifact = read
    assert check_golden_texts(TextEncoder(artifact), artifact) >= 40


def test_texts_and_pairs_made_at_random_have_the_ids_of_transformers(read):
    reference, artifact = read
    encoder, drawn = TextEncoder(artifact), random.Random(0)
    special = [*reference.all_special_tokens, *reference.added_tokens_encoder]
    texts, pairs = ([random_text(drawn, special) for _ in range(150)] for _ in "ab")
    cut = {"truncation": "longest_first", "max_length": MOST, "return_token_type_ids": True}
    for text, pair in zip(texts, pairs, strict=True):
        for arguments in ((text,), (text, pair)):
            expected = reference(*arguments, **cut)
            found = encoder.encode_as_is(text, *arguments[1:] or (None,), prompt_name=None)
            assert found.ids == expected["input_ids"], arguments
            assert not artifact.manifest.text.token_types or found.type_ids == expected["token_type_ids"], arguments
    several = encoder.encode([f"{text} a" for text in texts], truncate=True)
    for text, tokens in zip(texts, several, strict=True):
        assert tokens.input_ids.tolist() == reference(f"{text} a", **cut)["input_ids"]


# ---- what keeps a model from becoming ready


def spoiled(exported, name, tmp_path, **changes):
    """A copy of an artifact with other settings for texts in its manifest, or another tokenizer that it lists."""
    directory = tmp_path / name / "1"
    shutil.copytree(exported(name), directory)
    alter = changes.pop("tokenizer", None)
    if alter:
        contents = json.loads((directory / TOKENIZER).read_text("utf-8"))
        alter(contents)
        replace_file(directory, TOKENIZER, json.dumps(contents).encode())
    text = read_fields(directory)["text"] | changes
    change_manifest(directory, text={key: value for key, value in text.items() if value is not None})
    return directory


def swapped(contents):
    """Two words change places."""
    words = contents["model"]["vocab"]
    words["the"], words["a"] = words["a"], words["the"]


def not_lower_cased(contents):
    contents["normalizer"]["lowercase"] = False


def without_template(contents):
    contents["post_processor"] = None


def spaced(contents):
    contents["pre_tokenizer"]["add_prefix_space"] = True


def without_rarest_merge(contents):
    """No golden text has it."""
    contents["model"]["merges"].pop()


def without_special_token(contents):
    contents["added_tokens"] = contents["added_tokens"][:-1]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("tiny-bert", {"tokenizer": swapped}, r"golden text \d+ \(.*\): found token \d+ at position \d+, expected \d+"),
        ("tiny-bert", {"tokenizer": not_lower_cased}, r"golden text 0 \('The quick.*found .* expected"),
        ("tiny-bert", {"tokenizer": without_template}, r"golden text 0 .*: found"),
        ("tiny-bert", {"tokenizer": without_special_token}, r"golden text \d+ .*\[MASK\].*: found"),
        ("tiny-gpt", {"tokenizer": spaced}, r"golden text 0 .*: found"),
        ("tiny-gpt", {"tokenizer": without_rarest_merge}, r"tokenizer.json: found sha256 .*, expected .* as in golden"),
        ("tiny-bert", {"max_length": 63}, "found 63 for text.max_length in the manifest, expected 64"),
        ("tiny-bert", {"truncation_side": "left"}, "found 'left' for text.truncation_side in the manifest"),
        ("tiny-bert", {"mask_id": 3}, "found 3 for text.mask_id in the manifest, expected 4"),
        ("tiny-bert", {"pad_id": None}, "found None for text.pad_id in the manifest, expected 0"),
        ("tiny-bert", {"split_special_tokens": True}, "found True for text.split_special_tokens"),
        ("tiny-gpt", {"end_ids": [0, 5]}, r"found \[0, 5\] for text.end_ids in the manifest, expected \[0\]"),
        ("tiny-gpt", {"end_ids": []}, r"found None for text.end_ids in the manifest, expected \[0\]"),
        ("tiny-gpt", {"begin_id": 7}, "found 7 for text.begin_id in the manifest, expected 0"),
        ("tiny-embedder", {"prompts": PROMPTS | {"passage": "other: "}}, "for text.prompts in the manifest"),
        ("tiny-embedder", {"default_prompt_name": "passage"}, "found 'passage' for text.default_prompt_name"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_damaged_artifact_is_refused_with_the_reason(exported, tmp_path, name, changes, said):
    artifact = read_artifact(spoiled(exported, name, tmp_path, **changes))
    with pytest.raises(BadArtifact, match=said) as refused:
        check_golden_texts(TextEncoder(artifact), artifact)
    assert "export again" in str(refused.value)


def test_prompts_are_checked_by_the_ids_of_the_texts_behind_them(exported, tmp_path):
    """Even if a prompt was changed in both files."""
    directory = spoiled(exported, "tiny-embedder", tmp_path, prompts=PROMPTS | {"passage": "other: ", "document": ""})
    artifact = read_artifact(directory)
    golden = json.loads((directory / GOLDEN_TEXTS).read_text("utf-8"))
    golden["settings"]["prompts"] = dict(artifact.manifest.text.prompts)
    (directory / GOLDEN_TEXTS).write_text(json.dumps(golden), "utf-8")
    with pytest.raises(BadArtifact, match=r"golden text \d+ .*: found token"):
        check_golden_texts(TextEncoder(artifact), artifact)


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ("", "found an empty file"),
        ("[]", r"found \[\], expected an object"),
        ("{}", r"found 0 texts, expected \d+"),
        ('{"texts": 1}', "texts: found 1, expected a list"),
        ('{"texts": [{"txt": "a"}]}', r"texts\[0\].txt: found an unknown field, expected text"),
        ('{"texts": [{"text": "a"}]}', r"found 1 texts, expected \d+"),
    ],
)
def test_golden_texts_that_cannot_be_read_are_refused(exported, tmp_path, contents, said):
    directory = spoiled(exported, "tiny-bert", tmp_path)
    replace_file(directory, GOLDEN_TEXTS, contents.encode())
    artifact = read_artifact(directory)
    with pytest.raises(BadArtifact, match=rf"golden_texts.json: {said}"):
        check_golden_texts(TextEncoder(artifact), artifact)


def test_an_artifact_without_golden_texts_is_refused(exported, tmp_path):
    directory = spoiled(exported, "tiny-bert", tmp_path)
    unlist(directory, GOLDEN_TEXTS)
    with pytest.raises(BadArtifact, match="golden_texts.json not among the files of the manifest"):
        read_artifact(directory)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("name", "changes"),
    [("tiny-bert", {"tokenizer": not_lower_cased}), ("tiny-gpt", {"end_ids": [5]})],
    ids=["tiny-bert", "tiny-gpt"],
)
async def test_a_model_whose_texts_are_misread_never_becomes_ready(exported, tmp_path, name, changes):
    spoiled(exported, name, tmp_path, **changes)
    with pytest.raises(BadArtifact, match="export again"):
        async with opened(tmp_path, name):
            pass


@pytest.mark.asyncio
async def test_the_number_of_golden_texts_is_known_of_a_model(exported, tmp_path):
    spoiled(exported, "tiny-bert", tmp_path)
    async with opened(tmp_path, "tiny-bert") as repository:
        golden = json.loads((tmp_path / "tiny-bert/1" / GOLDEN_TEXTS).read_text("utf-8"))
        assert repository.get("tiny-bert").preprocessing_parity.texts == len(golden["texts"]) >= 16
