"""Our preprocessing of JPEG files for ViT-B/16: `REDUCING_GAP`."""

import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    from protos.manifest_pb2 import ImageInput, Size
    from server.images.preprocess import ImageDecoder

    steps = ImageInput(
        height=224,
        width=224,
        resize=Size(height=224, width=224),
        resample="bilinear",
        rescale=1 / 255,
        mean=[0.5] * 3,
        deviation=[0.5] * 3,
    )
    decoder = ImageDecoder(steps, reducing_gap=float(sys.argv[1]))

    def work(request: dict[str, Any]) -> dict[str, Any]:
        contents = [Path(file).read_bytes() for file in request["files"]]
        started = time.perf_counter()
        for content in contents * request["repeats"]:
            decoder.header(content)  # as the server does before it decodes
            decoder.decode(content)
        return {"seconds": time.perf_counter() - started}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
