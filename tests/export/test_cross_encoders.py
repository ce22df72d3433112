"""Cross-encoders of sentence-transformers: pairs have the scores that `predict` gives, by whatever activation."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import transformers
from sentence_transformers import CrossEncoder
from torch import nn

from export.errors import ExportError
from server.tasks.classification import FUNCTIONS
from tests.checkpoints import BERT, randomise
from tests.export.saved_models import change, computed, loaded

PAIRS = [
    ("a list", "a set"),
    ("The statement raises", "an exception, and the caller may catch it."),
    ("zero " * 60, "the set " * 50),
    ("a list", ""),
    ("", "a set"),
]
IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"


def classifier(directory: Path, checkpoints: dict[str, Path], classes: int) -> Path:
    """A classifier of texts that nothing says is a cross-encoder."""
    config = transformers.BertConfig(**BERT, num_labels=classes)
    randomise(transformers.BertForSequenceClassification(config)).save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoints["classifier"] / name, directory)
    return directory


@pytest.fixture
def scores_as_the_library(tmp_path: Path) -> Callable[[Path], None]:
    """Assert that the scores of pairs are those that CrossEncoder predicts."""

    def check(directory: Path) -> None:
        expected = CrossEncoder(str(directory), device="cpu").predict(PAIRS)
        found, manifest = computed(directory, *zip(*PAIRS, strict=True), scratch=tmp_path / "artifact")
        scores = FUNCTIONS[manifest.function_to_apply](found)
        np.testing.assert_allclose(scores.reshape(expected.shape), expected, atol=1e-5)

    return check


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(
    "written",
    [
        {"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.1"}},
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
        {"sentence_transformers": {"version": "4.0.1"}},
        {"sbert_ce_default_activation_function": IDENTITY},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"},
    ],
)
def test_a_cross_encoders_activation_in_config_json(
    written: dict[str, object],
    classes: int,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    scores_as_the_library: Callable[[Path], None],
) -> None:
    directory = classifier(tmp_path / "model", checkpoints, classes)
    change(directory / "config.json", **written)
    scores_as_the_library(directory)


@pytest.mark.filterwarnings("ignore:Implicit dimension")  # the library saves a softmax without its dimension
@pytest.mark.parametrize(("classes", "activation"), [(1, None), (1, nn.Identity()), (3, None), (3, nn.Softmax(dim=-1))])
def test_a_cross_encoder_as_version_6_saves_it(
    classes: int,
    activation: nn.Module | None,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    scores_as_the_library: Callable[[Path], None],
) -> None:
    plain = classifier(tmp_path / "plain", checkpoints, classes)
    encoder = CrossEncoder(str(plain), device="cpu", max_length=24, activation_fn=activation)
    encoder.prompts, encoder.default_prompt_name = {"q": "a set of "}, "q" if classes == 1 else None
    encoder.save_pretrained(str(tmp_path / "model"))
    scores_as_the_library(tmp_path / "model")


def test_a_classifier_of_several_classes_is_as_in_transformers(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    directory = classifier(tmp_path / "model", checkpoints, 3)
    assert loaded(directory).manifest.function_to_apply == "softmax"


@pytest.mark.parametrize("written", [TANH, "their.activation", "torch.nn.modules.activation.ReLU"])
def test_unknown_activations_of_cross_encoders_are_refused(
    written: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    directory = classifier(tmp_path / "model", checkpoints, 1)
    change(directory / "config.json", sentence_transformers={"activation_fn": written})
    with pytest.raises(ExportError, match=f"config.json: sentence_transformers.activation_fn is '{written}', expected"):
        loaded(directory)


def test_settings_of_a_cross_encoder_must_be_an_object(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    directory = classifier(tmp_path / "model", checkpoints, 1)
    change(directory / "config.json", sentence_transformers="4.0.1")
    with pytest.raises(ExportError, match=r"config.json: sentence_transformers is '4.0.1', expected an object"):
        loaded(directory)
