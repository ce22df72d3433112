"""The training of both vision models: randomly varied digits, a short warm-up, and a decay to zero."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from tqdm import tqdm

from models import checkpoints
from models.training import bundle, cards, command, digits, optimisers
from models.training.optimisers import Rates


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Steps and learning rates."""

    steps: int = 1000
    images_per_step: int = 96
    warm_up_steps: int = 30
    decay_share: float = 0.6
    rates: Rates = Rates(others=2e-3, weight_decay=0.05)
    seed: int = 20

    def rate(self, step: int) -> float:
        """The share of the maximum learning rate at a step."""
        return min(1.0, (step + 1) / self.warm_up_steps, (self.steps - step) / (self.decay_share * self.steps))


def train(model: nn.Module, schedule: Schedule) -> None:
    """Train the model on `steps` batches of randomly varied digits."""
    torch.set_flush_denormal(True)  # denormal gradients would take most of the time
    training, _ = digits.read()
    both = optimisers.create(model, schedule.rates)
    progress = tqdm(range(schedule.steps), unit="step", mininterval=2)
    for step in progress:
        optimisers.set_rates(both, schedule.rates, schedule.rate(step))
        picked = torch.randint(len(training.labels), (schedule.images_per_step,))
        loss = functional.cross_entropy(model(digits.varied(training.images[picked])), training.labels[picked])
        loss.backward()
        optimisers.step(both, model)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def initialise(model: nn.Module, seed: int) -> None:
    """N(0, 0.02) for all weights except biases and norms."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def accuracy(model: nn.Module, *, dark_on_light: bool = False) -> float:
    """The accuracy on held-out digits, which are given as pictures and preprocessed as the server does."""
    _, held_out = digits.read()
    pictures = [digits.as_picture(image, dark_on_light=dark_on_light) for image in held_out.images]
    with torch.inference_mode():
        guesses = model(digits.as_pixels(pictures)).argmax(dim=-1)
    return (guesses == held_out.labels).float().mean().item()


def run(
    model: nn.Module, card: cards.Card, save: Callable[[Path, nn.Module, Sequence[str]], None], schedule: Schedule
) -> None:
    """The command of a training program: train, save, measure the saved model, and write the card."""
    arguments = command.parser(card).parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    initialise(model, schedule.seed)
    train(model, schedule)
    minutes = (time.monotonic() - started) / 60
    save(arguments.output, model, digits.NAMES)
    digits.example()[0].save(arguments.output / "example.png")
    bundle.save_held_out_digits(arguments.output)
    saved = checkpoints.load(arguments.output)
    scores = {
        "accuracy, white on black": f"{accuracy(saved):.2%}",
        "accuracy, black on white": f"{accuracy(saved, dark_on_light=True):.2%}",
    }
    print("held-out " + "; ".join(f"{what}: {value}" for what, value in scores.items()))
    card = replace(card, scores=scores, minutes=minutes, machine=arguments.machine)
    cards.write(arguments.output, card, parameters=sum(parameter.numel() for parameter in saved.parameters()))
