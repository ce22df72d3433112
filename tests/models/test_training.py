"""The bundled models do what their cards say, on data that they were not trained on."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from models import checkpoints
from models.training import bert_mini, corpus, gpt_mini
from models.training.corpus import Corpus, Document

PRETRAINED = Path(checkpoints.__file__).parents[1] / "pretrained"
TEXT, VISION = ("bert-mini", "gpt-mini"), ("mixer-digits", "vit-digits")
LARGEST_BYTES = 25_000_000
TOP5_AT_LEAST, BITS_AT_MOST = (
    0.55,
    1.55,
)  # on Python's own documentation, unlike the scores of the cards


@pytest.fixture(scope="module")
def python_corpus() -> Corpus:
    """The part of the corpus that every machine has: Python's own documentation."""
    return corpus.read(packages=())


@pytest.mark.parametrize("name", TEXT + VISION)
def test_a_bundled_model_has_a_card(name: str) -> None:
    card = (PRETRAINED / name / "README.md").read_text("utf-8")
    assert f"models.training.{name.replace('-', '_')}" in card
    assert "held-out" in card
    assert "licence" in card.lower()


def test_the_bundled_models_are_small() -> None:
    sizes = {path: path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()}
    assert {path.parent.name for path in sizes} == {*TEXT, *VISION}
    assert sum(sizes.values()) <= LARGEST_BYTES, sizes


@pytest.mark.parametrize("name", VISION)
@pytest.mark.parametrize("dark_on_light", [False, True])
def test_digits_that_were_held_out_are_recognised(name: str, dark_on_light: bool) -> None:
    vision_training = pytest.importorskip("models.training.vision_training", reason="needs the extra `train`")
    model = checkpoints.load(PRETRAINED / name)
    assert vision_training.accuracy(model, dark_on_light=dark_on_light) >= 0.97


@pytest.mark.parametrize("name", VISION)
def test_the_example_picture_is_recognised(name: str) -> None:
    digits = pytest.importorskip("models.training.digits", reason="needs the extra `train`")
    picture = Image.open(PRETRAINED / "vit-digits" / "example.png").convert("RGB")
    logits = checkpoints.load(PRETRAINED / name)(digits.as_pixels([picture]))
    assert digits.NAMES[int(logits.argmax())] == digits.example()[1]


def test_no_paragraph_is_both_held_out_and_trained_on(python_corpus: Corpus) -> None:
    training, held_out = (set(fingerprints(part)) for part in (python_corpus.training, python_corpus.held_out))
    assert held_out
    assert not training & held_out


def test_every_paragraph_is_in_the_corpus_once(python_corpus: Corpus) -> None:
    found = fingerprints(python_corpus.training) + fingerprints(python_corpus.held_out)
    assert len(found) == len(set(found))


def test_held_out_modules_lose_paragraphs_that_are_trained_on() -> None:
    common = "the same words stand in the one and in the other module of this test"
    held_out, trained_on = sorted(
        (Document(f"package/module_{n}.py", ((common, f"words that stand in module {n} alone"),)) for n in range(500)),
        key=lambda document: not document.held_out,
    )[::499]
    found = corpus.split([held_out, trained_on])
    assert common in found.training[0].texts[0]
    assert found.held_out[0].texts == (held_out.texts[0][1:],)


def test_bert_mini_predicts_masked_tokens_of_held_out_text(python_corpus: Corpus) -> None:
    model, tokenizer = checkpoints.load(PRETRAINED / "bert-mini"), tokenizer_of("bert-mini")
    stream = bert_mini.as_stream(bert_mini.encode(python_corpus.held_out, tokenizer))
    assert bert_mini.top5_accuracy(model, stream, tokenizer, rows=24) >= TOP5_AT_LEAST


def test_gpt_mini_encodes_held_out_text_in_few_bits(python_corpus: Corpus) -> None:
    model, tokenizer = checkpoints.load(PRETRAINED / "gpt-mini"), tokenizer_of("gpt-mini")
    stream = gpt_mini.encode(python_corpus.held_out, tokenizer)
    assert gpt_mini.bits_per_character(model, stream, tokenizer, rows=24) <= BITS_AT_MOST


def test_bert_mini_knows_what_a_missing_file_does_not() -> None:
    model, tokenizer = checkpoints.load(PRETRAINED / "bert-mini"), tokenizer_of("bert-mini")
    ids = tokenizer.encode("If the file does not [MASK], an error is raised.").ids
    logits = model(torch.tensor([ids]))[0, ids.index(tokenizer.token_to_id("[MASK]"))]
    assert "exist" in [tokenizer.id_to_token(token) for token in logits.topk(5).indices.tolist()]


def tokenizer_of(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(PRETRAINED / name / "tokenizer.json"))


def fingerprints(documents: tuple[Document, ...]) -> list[str]:
    return [corpus.fingerprint(p) for document in documents for text in document.texts for p in text]
