"""The training of both text models: a warm-up, a constant rate, a decay.

Each step depends on its number and the seed alone, so that a resumed run equals an uninterrupted one. The loss and the
score are arguments.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from models.attention import SelfAttention, merge_heads, split_heads
from models.training import optimisers
from models.training.optimisers import Rates


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps and learning rates; shares are of `steps`."""

    steps: int
    tokens_per_step: int = 8192
    short_length: int = 128  # of a row at first, which is faster
    long_length: int = 256  # of a row at the end, so that all positions are trained
    long_share: float = 0.35
    warm_up_steps: int = 56
    decay_share: float = 0.4
    rates: Rates = Rates()
    seed: int = 20

    def rate(self, step: int) -> float:
        """The share of the maximum learning rate at a step."""
        decay = self.decay_share * self.steps
        return min(1.0, (step + 1) / self.warm_up_steps, (self.steps - step) / decay)

    def length(self, step: int) -> int:
        return self.short_length if step < (1 - self.long_share) * self.steps else self.long_length


def fused_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, heads: int) -> Tensor:
    """`models.attention.attend`, computed by PyTorch's fused kernel."""
    query, key, value = (split_heads(x, heads) for x in (query, key, value))
    return merge_heads(functional.scaled_dot_product_attention(query, key, value, mask))


def set_attend(model: nn.Module, attend: Callable[..., Tensor]) -> None:
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attend = attend


def initialise(model: nn.Module, depth: int, seed: int) -> None:
    """N(0, 0.02), with a smaller deviation for layers whose output is added to the residual stream."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            added = name.endswith(("out_proj.weight", "fc2.weight"))
            nn.init.normal_(parameter, std=0.02 / sqrt(2 * depth) if added else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def windows(stream: Tensor, *, step: int, rows: int, length: int, seed: int) -> Tensor:
    """The rows of one step: windows of the stream, each once per epoch, in random order and with a random offset."""
    count = len(stream) // length - 1
    picked = []
    for number in range(step * rows, (step + 1) * rows):
        epoch, place = divmod(number, count)
        if not picked or place == 0:
            random = torch.Generator().manual_seed(seed + epoch)
            offset = int(torch.randint(length, (1,), generator=random))
            order = torch.randperm(count, generator=random)
        start = int(order[place]) * length + offset
        picked.append(stream[start : start + length])
    return torch.stack(picked)  # (b, t)


def in_rows(stream: Tensor, length: int) -> Tensor:
    """A stream cut into rows without overlap; an incomplete last row is dropped."""
    return stream[: len(stream) // length * length].view(-1, length)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],
    score: Callable[[nn.Module], str],
    *,
    schedule: Schedule,
    state_path: Path | None = None,
    compiled: bool = False,
    every: int = 50,
) -> float:
    """Run the schedule, from the saved state if there is one, and return the total minutes.

    Prints the loss, and at intervals the held-out score.
    """
    torch.set_flush_denormal(True)  # denormal gradients would take most of the time
    set_attend(model, fused_attend)
    both, start, minutes = optimisers.create(model, schedule.rates), 0, 0.0
    if state_path and state_path.exists():
        start, minutes = load_state(state_path, model, both)
    started = time.monotonic() - minutes * 60
    runner = torch.compile(model, dynamic=False) if compiled else model
    progress = tqdm(range(start, schedule.steps), initial=start, total=schedule.steps, unit="step", mininterval=5)
    average = None
    for step in progress:
        optimisers.set_rates(both, schedule.rates, schedule.rate(step))
        value = loss(runner, step)
        value.backward()
        optimisers.step(both, model)
        average = value.item() if average is None else 0.95 * average + 0.05 * value.item()
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        if (step + 1) % every == 0:
            progress.write(f"step {step + 1}: loss {average:.3f}, held-out {score(model)}")
            if state_path:
                save_state(state_path, model, both, step=step + 1, minutes=(time.monotonic() - started) / 60)
    return (time.monotonic() - started) / 60


def save_state(path: Path, model: nn.Module, both: list[torch.optim.Optimizer], *, step: int, minutes: float) -> None:
    """Save the state atomically: a run that is stopped while saving keeps the previous state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    weights, momenta = model.state_dict(), [optimiser.state_dict() for optimiser in both]
    torch.save({"model": weights, "optimisers": momenta, "step": step, "minutes": minutes}, unfinished)
    unfinished.replace(path)


def load_state(path: Path, model: nn.Module, both: list[torch.optim.Optimizer]) -> tuple[int, float]:
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(both, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    return state["step"], state["minutes"]
