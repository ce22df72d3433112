"""Texts at the limits of a model: empty, long, and with tokens that the model does not have."""

import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

from export.inputs.text import tokenizer
from export.inputs.text.tokenizer import ModelDescription
from protos.artifact import TOKENIZER
from protos.manifest_pb2 import Manifest, TextInput
from server.admission.queue import RequestContext
from server.artifact import Artifact
from server.batching.collate import TextItem, collate
from server.errors import BadArtifact, InvalidRequest
from server.generation.request import Sampling
from server.text.detokenizer import Detokenizer, clean_up
from server.text.positions import positions
from server.text.tokenizer import TextEncoder
from tests.server.conftest import opened
from tests.tokenizer_kinds import KINDS, byte_level_file

pytestmark = pytest.mark.asyncio(loop_scope="module")


def encoder_of(directory, *, task="classify-text", family="bert", **sizes):
    """The server's tokenizer over what the export stores of a directory."""
    model = ModelDescription(family=family, task=task, **{"vocabulary": 500, "positions": 16, "segments": 2} | sizes)
    found = tokenizer.read(directory, None, model)
    (directory / "stored").mkdir()
    (directory / "stored" / TOKENIZER).write_text(found.json, "utf-8")
    return TextEncoder(
        Artifact(directory / "stored", Manifest(name="any", version=1, task=task, text=found.text_input))
    )


# ---- empty texts


@pytest.mark.parametrize("pair", [("", None), (" ", None), ("", ""), ("a list", ""), ("", "a list"), ("\n", " ")])
async def test_empty_texts_are_classified_as_the_pipeline_classifies_them(repository, tiny_checkpoints, pair):
    text, other = pair
    directory = str(tiny_checkpoints["tiny-classifier"])
    pipeline = transformers.pipeline("text-classification", model=directory, device="cpu")
    given = {"text": text} if other is None else {"text": text, "text_pair": other}
    task = repository.get("tiny-classifier").task
    (found,) = await task([text], [] if other is None else [other], context=RequestContext())
    expected = {each["label"]: each["score"] for each in pipeline([given], top_k=None)[0]}
    assert {each.label: each.score for each in found.classes} == pytest.approx(expected, rel=1e-4)
    count = repository.get("tiny-classifier").counter
    pairs = [] if other is None else [other]
    counted = await count([text], pairs, prompt_name=None, field="inputs", pair_field="text_pairs")
    assert counted == [found.usage.tokens]


async def test_empty_texts_have_vectors(repository):
    task = repository.get("tiny-embedder").task
    one, two, three = (await task(["", "a list", " "], context=RequestContext())).vectors
    assert one == pytest.approx(three)
    assert one != pytest.approx(two)


async def test_one_text_among_many_is_named_by_its_number(tmp_path):
    byte_level_file(tmp_path)
    encoder = encoder_of(tmp_path, family="gpt")
    with pytest.raises(InvalidRequest, match=r"inputs\[12\]: found a text without tokens, expected some text"):
        encoder.encode(["a", "", "b"], first=11, field="inputs")


@pytest.mark.parametrize("begins", [True, False])
async def test_an_empty_prompt_begins_with_bos_where_there_is_one(tmp_path, begins):
    byte_level_file(tmp_path, bos_token="<|endoftext|>" if begins else None)
    encoder = encoder_of(tmp_path, family="gpt", task="generate")
    count = encoder.count([""], field="inputs", pair_field="text_pairs")
    if begins:
        assert (encoder.encode_one("", field="prompts[0]").input_ids.tolist(), count) == ([0], [0])
    else:
        with pytest.raises(
            InvalidRequest, match=r"prompts\[0\]: found an empty text, expected some text: the model has"
        ):
            encoder.encode_one("", field="prompts[0]")


async def test_an_empty_prompt_is_continued_as_the_pipeline_continues_it(exported, tiny_checkpoints):
    pipeline = transformers.pipeline("text-generation", model=str(tiny_checkpoints["tiny-gpt"]), device="cpu")
    how = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False, "pad_token_id": 0}
    async with opened(exported("tiny-gpt").parents[1], "tiny-gpt") as repository:
        task, sampling = repository.get("tiny-gpt").task, Sampling(max_tokens=8, temperature=0)
        async with task.stream(["", "A list"], sampling, context=RequestContext()) as continued:
            texts = {0: "", 1: ""}
            async for number, piece in continued.read():
                texts[number] += piece.text
    assert texts == {n: pipeline(prompt, **how)[0]["generated_text"] for n, prompt in enumerate(["", "A list"])}


# ---- tokens that the model does not know


async def test_a_token_beyond_the_model_is_refused_where_it_stands(tmp_path):
    KINDS["added_tokens_decoder"](tmp_path)
    known = transformers.AutoTokenizer.from_pretrained(tmp_path).vocab_size
    encoder = encoder_of(tmp_path, vocabulary=known)
    assert len(encoder.encode(["a list", "hello"], ["the", "café"])) == 2
    with pytest.raises(InvalidRequest, match=rf"texts\[1\]: found the token '\[E1\]' \(id {known + 2}\), expected"):
        encoder.encode(["a", "b [E1]"])
    with pytest.raises(InvalidRequest, match=rf"text_pairs\[1\]: found the token 'xyz' \(id {known}\)"):
        encoder.encode(["a", "b"], ["c", "an Xyz"])
    with pytest.raises(InvalidRequest, match=r"prompts\[3\]: found the token '\[E2\]'"):
        encoder.encode_one("[E2]", field="prompts[3]")
    with pytest.raises(InvalidRequest, match=r"targets\[0\]: found the token '\[E1\]'"):
        encoder.token_id("[E1]", field="targets[0]")
    assert encoder.count(["b [E1]"], field="inputs", pair_field="text_pairs") == [4]


async def test_ids_without_a_token_have_no_text(tmp_path):
    byte_level_file(tmp_path)
    encoder = encoder_of(tmp_path, family="gpt", vocabulary=512)
    pieces = encoder.detokenizer()
    ids = [*encoder.encode(["a list"])[0].input_ids.tolist(), 450, 511, 40]
    assert "".join(map(pieces.push, ids)) + pieces.flush() == encoder.decode(ids)
    assert (encoder.decode([450]), encoder.token(450)) == ("", "")


# ---- long texts


async def test_long_texts_are_cut_on_the_side_of_the_tokenizer(tmp_path):
    KINDS["vocab.txt, cut on the left"](tmp_path)
    reference, encoder = transformers.AutoTokenizer.from_pretrained(tmp_path), encoder_of(tmp_path)
    letters = " ".join("abcdefghijklmnopqrstuvwxyz")
    for arguments in ([letters], [letters, letters[::-1]], [letters, "a"], ["x" * 8000 + letters]):
        (found,) = encoder.encode(arguments[:1], arguments[1:], truncate=True)
        expected = reference(*arguments, truncation="longest_first", max_length=16)
        assert found.input_ids.tolist() == expected["input_ids"]
        assert found.token_type_ids.tolist() == expected["token_type_ids"]
        assert found.truncated


async def test_a_model_without_token_types_gets_none(tmp_path):
    KINDS["no token types"](tmp_path)
    (found,) = encoder_of(tmp_path).encode(["a list"], ["a set"])
    assert not found.token_type_ids.any()


# ---- RoBERTa's padding tokens within a text

ROBERTA = TextInput(pad_position=64, pad_position_id=1)


async def test_padding_tokens_in_a_text_are_not_counted():
    ids = np.array([0, 5, 1, 1, 6, 2])
    expected = transformers.models.roberta.modeling_roberta.RobertaEmbeddings.create_position_ids_from_input_ids
    assert (positions(ids, ROBERTA) + 2).tolist() == [
        66 if place == 1 else place for place in expected(torch.tensor(ids[None]), 1)[0].tolist()
    ]
    assert positions(np.array([0, 5, 2]), ROBERTA) is None
    assert positions(ids, TextInput()) is None
    rows = [
        TextItem(input_ids=ids, position_ids=positions(ids, ROBERTA), outputs=()),
        TextItem(input_ids=ids[:2], outputs=()),
    ]
    assert collate(rows, ["position_ids"])["position_ids"].tolist() == [[0, 1, 64, 64, 2, 3], [0, 1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def roberta_root(exported_variant):
    names = ("roberta", "roberta-classifier", "roberta-embedder")
    return [exported_variant(name) for name in names][0].parents[1]


async def test_padding_tokens_in_a_text_are_read_as_transformers_reads_them(roberta_root, variant_checkpoints):
    texts = ["a <pad> list", "<pad>", "<pad><pad> is a <pad> mutable sequence", "no such token"]
    async with opened(roberta_root, "roberta-classifier", "roberta-embedder") as repository:
        directory = variant_checkpoints["roberta-classifier"]
        pipeline = transformers.pipeline("text-classification", model=str(directory), device="cpu")
        model = repository.get("roberta-classifier")
        found = await model.task(texts, context=RequestContext())
        for one, text in zip(found, texts, strict=True):
            expected = {each["label"]: each["score"] for each in pipeline(text, top_k=None)}
            assert {each.label: each.score for each in one.classes} == pytest.approx(expected, rel=1e-4)
        ids = np.array([[0, 1, 7, 1, 9, 2], [0, 8, 1, 2, 1, 1]])
        mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
        inputs = {"input_ids": ids, "attention_mask": mask}
        raw = await model.raw(inputs, context=RequestContext())
        with torch.no_grad():
            logits = pipeline.model(**{name: torch.tensor(array) for name, array in inputs.items()}).logits
        assert raw["logits"] == pytest.approx(logits.numpy(), abs=1e-4)
        embedder = transformers.AutoModel.from_pretrained(variant_checkpoints["roberta-embedder"]).eval()
        with torch.no_grad():
            vectors = embedder(**pipeline.tokenizer(texts[:1], return_tensors="pt")).last_hidden_state.mean(dim=1)
        found = (await repository.get("roberta-embedder").task(texts[:1], context=RequestContext())).vectors
        assert found == pytest.approx(torch.nn.functional.normalize(vectors).numpy(), abs=1e-5)


# ---- decoded text that is cleaned up


async def test_spaces_are_cleaned_up_in_a_stream_as_in_the_whole():
    text = "it is n't a list , is it ? ' yes ' . we 've it 's 're 'm ! ' n't"
    words = list(dict.fromkeys(text.split(" ")))
    reader = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="it"))
    base = transformers.PreTrainedTokenizerFast(tokenizer_object=reader)
    assert clean_up(text) == base.clean_up_tokenization(text)
    stream = Detokenizer(reader, cleans_up=True)
    assert "".join(stream.push(words.index(word)) for word in text.split(" ")) + stream.flush() == clean_up(text)


async def test_a_tokenizer_at_which_its_library_panics_is_refused(tmp_path):
    contents = {"type": "Precompiled", "precompiled_charsmap": ""}
    (tmp_path / TOKENIZER).write_text(
        json.dumps(json.loads(Tokenizer(models.BPE()).to_str()) | {"normalizer": contents})
    )
    with pytest.raises(BadArtifact, match="tokenizer.json: .*charsmap"):
        TextEncoder(Artifact(tmp_path, Manifest(text=TextInput(tokenizer=TOKENIZER, max_length=8))))
