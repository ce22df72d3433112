"""Shared by the tests of the models: random weights, published checkpoints, and the comparison with a reference."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.checkpoints import published, published_config

Checkpoint = tuple[dict[str, Any], dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _seeded_in_one_thread() -> Iterator[None]:
    """On a busy machine several threads wait for each other: one is three times as fast."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Give every parameter random values: among zeros and ones, two biases or norms swapped go unseen."""

    def randomise(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                bound = 1 if parameter.ndim == 1 else 2 / parameter[0].numel() ** 0.5
                parameter.uniform_(-bound, bound)
        return model.eval()

    return randomise


@pytest.fixture
def checkpoint(randomised: Callable[[nn.Module], nn.Module]) -> Callable[..., Checkpoint]:
    """A configuration and tensors as they are published, with random values."""

    def of(kind: type[nn.Module], config: object) -> Checkpoint:
        model = randomised(kind(config))
        return published_config(model), published(model)

    return of


@pytest.fixture
def assert_parity() -> Callable[[Tensor, Tensor], None]:
    """The largest difference is at most 1e-4 of the reference's standard deviation: fp32 and nothing worse."""

    def check(ours: Tensor, reference: Tensor) -> None:
        assert ours.shape == reference.shape
        largest = ((ours - reference).abs().max() / reference.std()).item()
        assert largest <= 1e-4, f"largest difference: {largest:.1e} standard deviations"

    return check
