"""Tiny checkpoints of variants: RoBERTa, DistilBERT, DeiT, and unusual sizes and labels."""

import json
from pathlib import Path

import transformers
from tokenizers import AddedToken, Tokenizer, processors

from tests.checkpoints import BERT, byte_pairs, randomise, write_bert_tokenizer, write_pooling

ROBERTA = {**BERT, "vocab_size": 410, "max_position_embeddings": 66, "type_vocab_size": 1}  # 64 positions and two more
DISTILBERT = {
    "vocab_size": 200,
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 128,
    "max_position_embeddings": 64,
}
VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
OUTER = ["<s>", "<pad>", "</s>", "<unk>"]  # 0 to 3, as published


def names(count: int) -> dict[str, dict]:
    """Labels in the format of config.json."""
    labels = [f"kind {n}" for n in range(count)]
    return {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}


def roberta_tokenizer() -> Tokenizer:
    """GPT-2's byte pairs between <s> and </s>, with a mask token that includes the space before it."""
    trained = byte_pairs()
    state = json.loads(trained.to_str())
    words = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    words.remove("<|endoftext|>")
    state["model"]["vocab"] = {word: n for n, word in enumerate([*OUTER, *words])}
    state["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens([*OUTER, AddedToken("<mask>", lstrip=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def write_roberta_tokenizer(directory: Path) -> None:
    roberta_tokenizer().save(str(directory / "tokenizer.json"))
    special = {"bos": "<s>", "eos": "</s>", "sep": "</s>", "cls": "<s>", "unk": "<unk>", "pad": "<pad>"}
    config = {f"{kind}_token": token for kind, token in special.items()} | {"model_max_length": 64}
    config |= {"mask_token": {"__type": "AddedToken", "content": "<mask>", "lstrip": True}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "RobertaTokenizer"}))


def write_roberta(directory: Path) -> None:
    randomise(transformers.RobertaForMaskedLM(transformers.RobertaConfig(**ROBERTA))).save_pretrained(directory)
    write_roberta_tokenizer(directory)


def write_roberta_classifier(directory: Path) -> None:
    """A classifier with two token types, the default of transformers."""
    config = transformers.RobertaConfig(**ROBERTA | {"type_vocab_size": 2}, **names(7))
    randomise(transformers.RobertaForSequenceClassification(config)).save_pretrained(directory)
    write_roberta_tokenizer(directory)


def write_roberta_embedder(directory: Path) -> None:
    randomise(transformers.RobertaModel(transformers.RobertaConfig(**ROBERTA))).save_pretrained(directory)
    write_roberta_tokenizer(directory)
    write_pooling(directory)


def write_distilbert(directory: Path) -> None:
    config = transformers.DistilBertConfig(**DISTILBERT)
    randomise(transformers.DistilBertForMaskedLM(config)).save_pretrained(directory)
    write_bert_tokenizer(directory)


def write_distilbert_classifier(directory: Path) -> None:
    """A multi-label classifier with two classes."""
    config = transformers.DistilBertConfig(**DISTILBERT, **names(2), problem_type="multi_label_classification")
    randomise(transformers.DistilBertForSequenceClassification(config)).save_pretrained(directory)
    write_bert_tokenizer(directory)


def write_distilbert_embedder(directory: Path) -> None:
    randomise(transformers.DistilBertModel(transformers.DistilBertConfig(**DISTILBERT))).save_pretrained(directory)
    write_bert_tokenizer(directory)
    write_pooling(directory)


def write_layered_embedder(directory: Path) -> None:
    """BERT with all poolings of sentence-transformers and more layers, whose vectors do not have length 1."""
    from sentence_transformers import SentenceTransformer  # here because the import takes seconds
    from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer

    encoder = randomise(transformers.BertModel(transformers.BertConfig(**BERT), add_pooling_layer=False))
    encoder.save_pretrained(directory)
    write_bert_tokenizer(directory)
    poolings = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    layers = [Dense(len(poolings) * 64, 48), Normalize(), Dense(48, 32, bias=False), LayerNorm(32)]
    modules = [Transformer(str(directory)), Pooling(64, poolings), *map(randomise, layers)]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory))


def write_regression(directory: Path) -> None:
    """BERT with a single label, whose logit is the result."""
    config = transformers.BertConfig(**BERT, **names(1), problem_type="regression")
    randomise(transformers.BertForSequenceClassification(config)).save_pretrained(directory)
    write_bert_tokenizer(directory)


def write_deit(directory: Path, kind: type = transformers.DeiTForImageClassification) -> None:
    """DeiT, with images resized to 40 pixels and cropped to 32."""
    config = transformers.DeiTConfig(**VISION, image_size=32, patch_size=8, **names(10))
    randomise(kind(config)).save_pretrained(directory)
    sizes = {"size": {"height": 40, "width": 40}, "crop_size": {"height": 32, "width": 32}}
    transformers.DeiTImageProcessorPil(**sizes).save_pretrained(directory)


def write_deit_with_teacher(directory: Path) -> None:
    write_deit(directory, transformers.DeiTForImageClassificationWithTeacher)


def write_odd_vit(directory: Path) -> None:
    """A ViT with nine patches of 12 pixels."""
    config = transformers.ViTConfig(**VISION, image_size=36, patch_size=12, **names(3))
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(directory)
    transformers.ViTImageProcessorPil(size={"height": 36, "width": 36}).save_pretrained(directory)


def write_multi_label_vit(directory: Path) -> None:
    """A multi-label classifier."""
    config = transformers.ViTConfig(**VISION, image_size=32, **names(3), problem_type="multi_label_classification")
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(directory)
    transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(directory)


VARIANTS = {
    "roberta": write_roberta,
    "roberta-classifier": write_roberta_classifier,
    "roberta-embedder": write_roberta_embedder,
    "distilbert": write_distilbert,
    "distilbert-classifier": write_distilbert_classifier,
    "distilbert-embedder": write_distilbert_embedder,
    "layered-embedder": write_layered_embedder,
    "regression": write_regression,
    "deit": write_deit,
    "deit-with-teacher": write_deit_with_teacher,
    "odd-vit": write_odd_vit,
    "multi-label-vit": write_multi_label_vit,
}
