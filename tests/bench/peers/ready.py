"""Tensors for engines without preprocessing, and the models of transformers that they run, with logits only."""

from collections.abc import Iterator
from typing import Any


def torch_model(checkpoint: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """The model (`text` or `image`) with logits for its one output, and an example of its inputs."""
    import torch
    import transformers

    classes = {"text": transformers.AutoModelForMaskedLM, "image": transformers.AutoModelForImageClassification}
    transformers.utils.logging.disable_progress_bar()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = classes[kind].from_pretrained(checkpoint).eval()

    class TextLogits(Logits):
        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits

    class ImageLogits(Logits):
        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values).logits

    if kind == "image":
        model: Any = ImageLogits()
        size = model.model.config.image_size
        return model, {"pixel_values": torch.zeros(2, 3, size, size)}
    names = ("input_ids", "attention_mask", "token_type_ids")
    return TextLogits(), {name: torch.ones(2, 16, dtype=torch.long) for name in names}  # three: one would be one input


def dynamic(example: dict[str, Any]) -> dict[str, Any]:
    """The dynamic axes for torch.export: the batch, and the length of texts."""
    import torch

    return {
        name: dict.fromkeys(range(2 if x.ndim == 2 else 1), torch.export.Dim.DYNAMIC) for name, x in example.items()
    }


def load(file: str) -> dict[str, Any]:
    import numpy as np

    return dict(np.load(file))


def batches(tensors: dict[str, Any], size: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """Feeds of `size` rows each, as long as the longest of them, and the selected positions (b) (None for images)."""
    positions = tensors.get("positions")
    feeds = {name: array for name, array in tensors.items() if name != "positions"}
    for begin in range(0, len(next(iter(feeds.values()))), size):
        batch = {name: array[begin : begin + size] for name, array in feeds.items()}
        if positions is None:
            yield batch, None
            continue
        longest = int(batch["attention_mask"].sum(1).max())
        yield {name: array[:, :longest] for name, array in batch.items()}, positions[begin : begin + size]


def best(logits: Any, positions: Any) -> list[int]:
    """The most likely token at each row's position, or the most likely class."""
    if positions is not None:
        logits = logits[range(len(positions)), positions]
    return [int(row.argmax()) for row in logits]
