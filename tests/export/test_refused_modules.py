"""What a saved model of sentence-transformers says and an export does not know: refused by file, key and value."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers.sentence_transformer.modules import Dense, Pooling

from export.errors import ExportError
from tests.export.saved_models import LIBRARY_SETTINGS, SETTINGS, change, loaded, write

POOLING, DENSE, PROMPTS = "1_Pooling/config.json", "2_Dense/config.json", LIBRARY_SETTINGS
LIBRARY = "sentence_transformers.models"


# fmt: off
@pytest.mark.parametrize(("file", "changes", "said"), [
    (POOLING,  {"pooling_mode": "median"},            "1_Pooling/config.json: pooling_mode is 'median', expected one of cls, max, mean"),  # noqa: E501
    (POOLING,  {"pooling_mode": ["mean", "median"]},  r"pooling_mode is \['mean', 'median'\], expected one of"),
    (POOLING,  {"pooling_mode_median": True},         "1_Pooling/config.json: found pooling_mode_median, expected"),
    (DENSE,    {"activation_function": "their.Act"},  "2_Dense/config.json: activation_function is 'their.Act', expected one of torch"),  # noqa: E501
    (DENSE,    {"in_features": 63},                   "in_features is 63, expected 64, the width of the vector before it"),  # noqa: E501
    (DENSE,    {"out_features": 31},                  r"misshapen vector_layers.0.linear.weight: found \(24, 64\)"),
    (DENSE,    {"bias": False},                       "left over vector_layers.0.linear.bias"),
    (DENSE,    {"module_input_name": "token_embeddings"}, "module_input_name is 'token_embeddings', expected 'sentence_embedding'"),  # noqa: E501
    (DENSE,    {"shift": 1},                          "2_Dense/config.json: found shift, expected some of in_features"),
    (PROMPTS,  {"default_prompt_name": "title"},      "default_prompt_name is 'title', expected one of the prompts"),
    (PROMPTS,  {"prompts": {"q": 7}},                 r"prompts\['q'\] is 7, expected text"),
    (PROMPTS,  {"prompts": ["a set of "]},            r"prompts is \[\"a set of \"\], expected an object"),
    (PROMPTS,  {"prompts": {"": "a set of "}, "default_prompt_name": ""}, r"prompts\[''\] is \"a set of \", expected a name"),  # noqa: E501
    (PROMPTS,  {"truncate_dim": 0},                   "config_sentence_transformers.json: truncate_dim is 0, expected a width"),  # noqa: E501
    (PROMPTS,  {"truncate_dim": "7"},                 "truncate_dim is '7', expected a width"),
    (PROMPTS,  {"truncate_dim": 7.0},                 "truncate_dim is 7.0, expected a width"),
    (SETTINGS, {"max_seq_length": -1},                "sentence_bert_config.json: max_seq_length is -1, expected a"),
    (SETTINGS, {"max_seq_length": "32"},              "max_seq_length is '32', expected a number of tokens"),
    (SETTINGS, {"max_seq_length": 1},                 "max_seq_length: found 1, expected .* the 2 special ones"),
    (SETTINGS, {"processing_kwargs": {"text": {"max_length": 3.5}}}, "processing_kwargs.max_length is 3.5, expected a num"),  # noqa: E501
    (PROMPTS,  {"model_type": "SparseEncoder"},       "model_type is 'SparseEncoder', expected 'SentenceTransformer'"),
    (SETTINGS, {"tokenizer_name_or_path": "other"},   "found tokenizer_name_or_path, which changes"),
    (SETTINGS, {"transformer_task": "fill-mask"},     "transformer_task is 'fill-mask', expected 'feature-extraction'"),
    (SETTINGS, {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}, "modality_config is .*pooler_output.*expected text with forward and last_hidden_state"),  # noqa: E501
    (SETTINGS, {"config_args": {"num_hidden_layers": 1}}, "config_kwargs has num_hidden_layers, expected .* into config.json"),  # noqa: E501
    (SETTINGS, {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "processing_kwargs has add_special_tokens=False"),  # noqa: E501
])
# fmt: on
def test_settings_that_would_change_the_vectors_are_refused_by_name(
    file: str, changes: dict[str, object], said: str, saved: Callable[..., Path]
) -> None:
    directory = saved(Pooling(64, "mean"), Dense(64, 24))
    change(directory / file, **changes)
    with pytest.raises(ExportError, match=said):
        loaded(directory)


def test_a_pooling_without_its_settings_is_refused(saved: Callable[..., Path]) -> None:
    directory = saved(Pooling(64, "mean"))
    (directory / POOLING).unlink()
    with pytest.raises(ExportError, match="1_Pooling/config.json: found no settings, expected pooling_mode"):
        loaded(directory)


def test_excluding_a_prompt_from_the_pooling_is_refused(saved: Callable[..., Path]) -> None:
    directory = saved(Pooling(64, "mean", include_prompt=False))
    assert loaded(directory)
    change(directory / LIBRARY_SETTINGS, prompts={"q": "a set of "})
    with pytest.raises(ExportError, match=r"include_prompt is False and the model has prompts \(q\), expected true"):
        loaded(directory)


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (1, {"type": f"{LIBRARY}.WordWeights"}, f"type is '{LIBRARY}.WordWeights', expected one of"),
        (1, {"type": "modeling.Pooling"}, "type is 'modeling.Pooling', expected one of sentence-transformers'"),
        (1, {"path": "../elsewhere"}, "path is '../elsewhere', expected a folder within"),
        (0, {"type": f"{LIBRARY}.Pooling"}, "found Pooling first, expected Transformer"),
        (1, {"type": f"{LIBRARY}.Normalize"}, "found Transformer, Normalize with BertModel, expected"),
        (0, {"path": "0_Transformer"}, "found no 0_Transformer/config.json, which modules.json names"),
    ],
)
def test_unknown_modules_are_refused_by_name(
    number: int, changes: dict[str, str], said: str, saved: Callable[..., Path]
) -> None:
    directory = saved(Pooling(64, "mean"))
    modules = json.loads((directory / "modules.json").read_text())
    modules[number] |= changes
    write(directory / "modules.json", modules)
    with pytest.raises(ExportError, match=said):
        loaded(directory)
