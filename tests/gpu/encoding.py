"""BERT and ViT in torch, with the outputs of our graphs; and the time of their matrix products alone."""

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
TOP = 64  # candidates that a graph for fill-mask outputs
SIZE = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices whose product is timed
PRECISION = {"cuda": torch.float16, "cpu": torch.float32}  # of our graphs
PRODUCTS = 10  # in one measurement, so that the time to launch one is negligible


class Filled(torch.nn.Module):
    """One mask in each text, at its first token. The head is computed only there, as in our graphs."""

    def __init__(self, model: transformers.BertForMaskedLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:  # (b, t)
        hidden = self.model.bert(input_ids).last_hidden_state[:, 0]  # (b, d)
        logits = self.model.cls(hidden).float()  # (b, v)
        scores, ids = logits.topk(min(TOP, logits.shape[-1]))
        return scores, ids, logits.logsumexp(-1)


class Classified(torch.nn.Module):
    """Pixels in fp32, as in our graphs."""

    def __init__(self, model: transformers.ViTForImageClassification) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:  # (b, 3, h, w)
        return (self.model(pixel_values.to(self.model.dtype)).logits,)  # (b, c)


@dataclass(frozen=True)
class Encoder:
    """A model in torch: its class, a wrapper with the outputs of our graphs, and inputs for a batch on a device."""

    kind: Any
    wrap: Callable[[Any], torch.nn.Module]
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
    """Operations per second in a product of large random matrices. A multiply-add counts as two."""
    size = SIZE[provider]
    left, right = torch.randn(2, size, size, device=provider, dtype=PRECISION[provider])

    def multiply() -> None:
        for _ in range(PRODUCTS):
            product = left @ right
        product[0, 0].item()  # waits for the result

    return 2 * size**3 * PRODUCTS / timed(multiply, 5)


@torch.inference_mode()
def operations(name: str, artifact: Artifact, checkpoint: Path) -> int:
    """The operations in the matrix products for one input, counted without running them."""
    encoder, config = ENCODERS[name], transformers.AutoConfig.from_pretrained(checkpoint, attn_implementation="eager")
    with torch.device("meta"):
        wrapped = encoder.wrap(encoder.kind(config).eval())
    with FlopCounterMode(display=False) as counter:
        wrapped(encoder.inputs(artifact, 1, "meta"))
    return int(counter.get_total_flops())


def floor(name: str, batch: int, seconds: float, rate: float) -> Row:
    """The row of the matrix products alone."""
    what = f"floor of its matrix products at {rate / 1e12:,.2f} TFLOP/s"
    return Row(name, what, batch, seconds * 1e3, batch / seconds, 1.0)


@torch.inference_mode()
def in_torch(
    name: str, artifact: Artifact, checkpoint: Path, provider: str, floors: Sequence[Row], runs: int
) -> Iterator[Row]:
    """One row for each batch size, with copies from and to host memory, as in our sessions."""
    encoder, dtype = ENCODERS[name], PRECISION[provider]
    model = encoder.kind.from_pretrained(checkpoint, dtype=dtype).eval().to(provider)
    for least in floors:
        inputs = encoder.inputs(artifact, least.batch, "cpu")

        def run(wrapped: Any, inputs: torch.Tensor = inputs) -> list[torch.Tensor]:
            return [output.cpu() for output in wrapped(inputs.to(provider))]

        how, wrapped = compiled(encoder.wrap(model), provider, run)
        seconds = timed(lambda run=run, wrapped=wrapped: run(wrapped), runs)
        what = f"torch {str(dtype).removeprefix('torch.')}, {how}"
        yield Row(name, what, least.batch, seconds * 1e3, least.batch / seconds, least.milliseconds / 1e3 / seconds)
