"""Small models of transformers, inputs for them, and types of fixtures, for comparisons with ours."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    ViTConfig,
)
from transformers.initialization import no_init_weights

Randomised = Callable[[nn.Module], nn.Module]
AssertParity = Callable[[Tensor, Tensor], None]
Saved = Callable[[PreTrainedModel], Path]


def small_bert(**changes: object) -> BertConfig:
    """A small BERT. Its epsilon is so large that a missing epsilon would be noticed."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}
    counts = {"vocab_size": 500, "max_position_embeddings": 40, "type_vocab_size": 3}
    return BertConfig(**{**sizes, **counts, "layer_norm_eps": 1e-2, **changes})


def small_roberta(**changes: object) -> RobertaConfig:
    """A small RoBERTa with 40 positions, after the two that RoBERTa skips."""
    return RobertaConfig(**{**small_bert(**changes).to_dict(), "max_position_embeddings": 42, "pad_token_id": 1})


def small_distilbert(**changes: object) -> DistilBertConfig:
    sizes = {"dim": 64, "n_layers": 3, "n_heads": 4, "hidden_dim": 160}
    return DistilBertConfig(**{**sizes, "vocab_size": 500, "max_position_embeddings": 40, **changes})


def small_gpt2(**changes: object) -> GPT2Config:
    sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 500, "n_positions": 40}
    return GPT2Config(**{**sizes, "layer_norm_epsilon": 1e-2, "bos_token_id": 0, "eos_token_id": 0, **changes})


def small_vit(**changes: object) -> ViTConfig:
    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}
    return ViTConfig(**{**sizes, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-2, "num_labels": 7, **changes})


def batch(vocabulary: int, positions: int, segments: int = 2) -> dict[str, Tensor]:
    """Three texts of different lengths, with random tokens at the padding, which must be ignored."""
    lengths = torch.tensor([positions, positions // 2, 1])
    texts = {
        "input_ids": torch.randint(0, vocabulary, (3, positions)),
        "attention_mask": (torch.arange(positions) < lengths[:, None]).long(),
    }
    return {**texts, "token_type_ids": torch.randint(0, segments, (3, positions))} if segments else texts


def batch_of_roberta(segments: int) -> dict[str, Tensor]:
    """Like `batch`. RoBERTa finds padding by its token id, so the padding has that id, and no other token does."""
    texts = batch(500, 40, segments)
    texts["input_ids"] = texts["input_ids"].clamp(min=2).where(texts["attention_mask"].bool(), 1)
    return texts


def run_bert(model: nn.Module, texts: dict[str, Tensor]) -> Tensor:
    """Run our BERT, which takes lengths, on inputs of transformers, which have a mask."""
    lengths = texts["attention_mask"].sum(dim=1)
    return model(texts["input_ids"], lengths, token_type_ids=texts.get("token_type_ids"))


def without_initial_values(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """A model without initial values, which take transformers five seconds, and which the tests overwrite."""
    with no_init_weights():
        model = kind(config)
    model.tie_weights()
    return model


def pooled(output: Any, texts: dict[str, Tensor], pooling: str) -> Tensor:
    """The pooled output of transformers."""
    real = texts["attention_mask"][..., None]
    return {
        "mean": lambda: (output.last_hidden_state * real).sum(dim=1) / real.sum(dim=1),
        "first-token": lambda: output.last_hidden_state[:, 0],
        "pooler": lambda: output.pooler_output,
    }[pooling]()
