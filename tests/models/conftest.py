"""What the tests of the models share: weights without zeros and ones, and the measure of parity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Move every parameter off its initial value: among zeros and ones, two biases or norms swapped go unseen."""

    def randomise(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(torch.empty_like(parameter).uniform_(-0.5, 0.5))
                else:
                    bound = 2 / parameter[0].numel() ** 0.5
                    parameter.uniform_(-bound, bound)
        return model.eval()

    return randomise


@pytest.fixture
def assert_parity() -> Callable[[Tensor, Tensor], None]:
    """The largest difference is at most 1e-4 of the reference's standard deviation: fp32 and nothing worse."""

    def check(ours: Tensor, reference: Tensor) -> None:
        assert ours.shape == reference.shape
        largest = ((ours - reference).abs().max() / reference.std()).item()
        assert largest <= 1e-4, f"largest difference: {largest:.1e} standard deviations"

    return check
