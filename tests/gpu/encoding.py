"""BERT and ViT in torch, asked for what our graphs give; and how long their matrix products alone would take."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from server.artifact import Artifact
from tests.gpu.compiling import compiled
from tests.gpu.rows import Row, timed

TEXT_TOKENS = 128
TOP = 64  # candidates that a graph for fill-mask gives
SIZE = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices whose product is timed
PRECISION = {"cuda": torch.float16, "cpu": torch.float32}  # that of our graphs there
PRODUCTS = 10  # in a row: starting one costs nothing then


class Filled(torch.nn.Module):
    """One mask in each text, at its first token: the head is computed there alone, as ours does."""

    def __init__(self, model: transformers.BertForMaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:  # (b, t)
        hidden = self.model.bert(input_ids).last_hidden_state[:, 0]  # (b, d)
        logits = self.model.cls(hidden).float()  # (b, v)
        scores, ids = logits.topk(min(TOP, logits.shape[-1]))
        return scores, ids, logits.logsumexp(-1)


class Classified(torch.nn.Module):
    """Pixels in fp32, as our graphs take them."""

    def __init__(self, model: transformers.ViTForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:  # (b, 3, h, w)
        return (self.model(pixel_values.to(self.model.dtype)).logits,)  # (b, c)


@dataclass(frozen=True)
class Encoder:
    """A model in torch: its class, what is asked of it, and inputs for a batch on a device."""

    kind: Any
    asked: Callable[[Any], torch.nn.Module]
    inputs: Callable[[Artifact, int, str], torch.Tensor]


def texts(artifact: Artifact, batch: int, device: str) -> torch.Tensor:
    return torch.ones(batch, text_length(artifact), dtype=torch.long, device=device)


def text_length(artifact: Artifact) -> int:
    return min(TEXT_TOKENS, artifact.manifest.text.max_length)


def images(artifact: Artifact, batch: int, device: str) -> torch.Tensor:
    return torch.zeros(batch, 3, artifact.manifest.image.height, artifact.manifest.image.width, device=device)


ENCODERS = {
    "bert-base": Encoder(transformers.BertForMaskedLM, Filled, texts),
    "vit-base": Encoder(transformers.ViTForImageClassification, Classified, images),
}


@torch.inference_mode()
def products_per_second(provider: str) -> float:
    """Operations in a second of a product of large random matrices; a multiplication and its addition are two."""
    size = SIZE[provider]
    left, right = torch.randn(2, size, size, device=provider, dtype=PRECISION[provider])

    def multiply() -> None:
        for _ in range(PRODUCTS):
            product = left @ right
        product[0, 0].item()  # when it is there

    return 2 * size**3 * PRODUCTS / timed(multiply, 5)


@torch.inference_mode()
def operations(name: str, artifact: Artifact, checkpoint: Path) -> int:
    """Those of all matrix products for one input: of what torch would run, counted, not run."""
    encoder, config = ENCODERS[name], transformers.AutoConfig.from_pretrained(checkpoint, attn_implementation="eager")
    with torch.device("meta"):
        asked = encoder.asked(encoder.kind(config).eval())
    with FlopCounterMode(display=False) as counter:
        asked(encoder.inputs(artifact, 1, "meta"))
    return int(counter.get_total_flops())


def floor(name: str, batch: int, seconds: float, rate: float) -> Row:
    """As fast as the products alone would be."""
    what = f"floor of its matrix products at {rate / 1e12:,.2f} TFLOP/s"
    return Row(name, what, batch, seconds * 1e3, batch / seconds, 1.0)


@torch.inference_mode()
def in_torch(
    name: str, artifact: Artifact, checkpoint: Path, provider: str, floors: Sequence[Row], runs: int
) -> Iterator[Row]:
    """Each batch that there is a floor for, from the host's memory and back, as our sessions run."""
    encoder, dtype = ENCODERS[name], PRECISION[provider]
    model = encoder.kind.from_pretrained(checkpoint, dtype=dtype).eval().to(provider)
    for least in floors:
        inputs = encoder.inputs(artifact, least.batch, "cpu")

        def run(asked: Any, inputs: torch.Tensor = inputs) -> list[torch.Tensor]:
            return [output.cpu() for output in asked(inputs.to(provider))]

        how, asked = compiled(encoder.asked(model), provider, run)
        seconds = timed(lambda run=run, asked=asked: run(asked), runs)
        what = f"torch {str(dtype).removeprefix('torch.')}, {how}"
        yield Row(name, what, least.batch, seconds * 1e3, least.batch / seconds, least.milliseconds / 1e3 / seconds)
