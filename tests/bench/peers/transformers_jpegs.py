"""The image processor of transformers for ViT-B/16, with Pillow."""

import io
import time
from pathlib import Path
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    from PIL import Image
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        contents = [Path(file).read_bytes() for file in request["files"]]
        started = time.perf_counter()
        for content in contents * request["repeats"]:
            processor(Image.open(io.BytesIO(content)).convert("RGB"), return_tensors="np")
        return {"seconds": time.perf_counter() - started}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
