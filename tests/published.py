"""Checkpoints of published sizes with random weights, tiny ones for trial runs, and their export."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers

from tests.checkpoints import WRITERS, write_bert_tokenizer, write_gpt2_tokenizer
from tests.serving import ROOT

SEED = 0
TINY = {"bert-base": "bert", "gpt2": "gpt", "vit-base": "vit"}  # name → its tiny stand-in
MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "bert-base": lambda: transformers.BertForMaskedLM(transformers.BertConfig()),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()),
    "vit-base": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)),
}
EXTRAS: dict[str, Callable[[Path], None]] = {
    "bert-base": lambda directory: write_bert_tokenizer(directory, positions=512),
    "gpt2": write_gpt2_tokenizer,
    "vit-base": lambda directory: transformers.ViTImageProcessorPil().save_pretrained(directory),
}


def write_published(root: Path, names: Sequence[str] = tuple(MODELS)) -> dict[str, Path]:
    """Write checkpoints of published sizes as transformers initialises them. Returns name → directory."""
    for name in names:
        torch.manual_seed(SEED)
        MODELS[name]().save_pretrained(root / name)
        EXTRAS[name](root / name)
    return {name: root / name for name in names}


def write_tiny(root: Path, names: Sequence[str] = tuple(MODELS)) -> dict[str, Path]:
    """Write tiny checkpoints of the same names, for trial runs."""
    for name in names:
        (root / name).mkdir()
        WRITERS[TINY[name]](root / name)
    return {name: root / name for name in names}


SIZES = {"published": write_published, "tiny": write_tiny}


def export(sources: Sequence[str | Path], artifacts: Path, target: str) -> None:
    """Export the sources for a target (`cpu=fp32`) with visible output. Exits if the export fails."""
    command = [sys.executable, "-m", "export", *map(str, sources), "--artifacts", str(artifacts), "--target", target]
    if subprocess.run(command, cwd=ROOT).returncode:
        sys.exit("error: the export failed")
