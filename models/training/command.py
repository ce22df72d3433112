"""The command line of the training programs."""

import argparse
import platform
from pathlib import Path

import torch

from models.training.cards import Card


def parser(card: Card) -> argparse.ArgumentParser:
    """The options of all training programs."""
    parser = argparse.ArgumentParser(prog=f"python -m models.training.{card.module}", description=card.summary)
    parser.add_argument(
        "--output", type=Path, default=Path("models/pretrained") / card.name, help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument(
        "--machine", default=platform.machine(), help="name of this machine in the model card; default: %(default)s"
    )
    return parser


def text_parser(card: Card) -> argparse.ArgumentParser:
    """The options of all training programs, and those for long runs."""
    shared = parser(card)
    shared.add_argument(
        "--state", type=Path, help="file in which the state is saved at intervals, and from which the run resumes"
    )
    shared.add_argument("--compile", action="store_true", help="compile the model: faster, but needs a C++ compiler")
    return shared
