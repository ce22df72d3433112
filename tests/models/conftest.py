"""Fixtures for tests of the models: random weights, published checkpoints, and the comparison with a reference."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.checkpoints import published, published_config

Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _seeded_in_one_thread() -> Iterator[None]:
    """One thread is three times as fast on a busy machine, because several threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Gives every parameter random values, because swapped biases or norms of zeros and ones would not be noticed."""

    def randomise(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                bound = 1 if parameter.ndim == 1 else 2 / parameter[0].numel() ** 0.5
                parameter.uniform_(-bound, bound)
        return model.eval()

    return randomise


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def saved(randomised: Callable[[nn.Module], nn.Module], tmp_path: Path) -> Callable[[PreTrainedModel], Path]:
    """Gives a reference random weights, saves it, and returns the directory."""

    def save_pretrained(reference: PreTrainedModel) -> Path:
        randomised(reference).save_pretrained(tmp_path)
        return tmp_path

    return save_pretrained


@pytest.fixture
def checkpoint(randomised: Callable[[nn.Module], nn.Module]) -> Callable[..., Checkpoint]:
    """A configuration and tensors in the published layout, with random values."""

    def of(kind: type[nn.Module], config: object) -> Checkpoint:
        model = randomised(kind(config))
        return published_config(model), published(model)

    return of


@pytest.fixture
def assert_parity() -> Callable[[Tensor, Tensor], None]:
    """Asserts a largest difference of at most 1e-4 standard deviations of the reference, the tolerance of fp32."""

    def check(ours: Tensor, reference: Tensor) -> None:
        assert ours.shape == reference.shape
        largest = ((ours - reference).abs().max() / reference.std()).item()
        assert largest <= 1e-4, f"largest difference: {largest:.1e} standard deviations"

    return check
