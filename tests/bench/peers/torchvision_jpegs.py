"""The steps of ViT-B/16 with torchvision: its own JPEG decoder, and its transforms on tensors."""

import time
from pathlib import Path
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms import v2

    torch.set_num_threads(1)
    steps = v2.Compose(
        [
            v2.Resize((224, 224), interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )

    def work(request: dict[str, Any]) -> dict[str, Any]:
        contents = [
            torch.frombuffer(bytearray(Path(file).read_bytes()), dtype=torch.uint8) for file in request["files"]
        ]
        started = time.perf_counter()
        for content in contents * request["repeats"]:
            steps(decode_jpeg(content, mode=ImageReadMode.RGB))
        return {"seconds": time.perf_counter() - started}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
