"""A pipeline of transformers, as its documentation shows it: `CHECKPOINT TASK DTYPE`.

Asked with `texts` or `files` (of images), all handed over at once in batches of `batch`.
"""

import sys
import time
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    import torch
    import transformers
    from PIL import Image

    checkpoint, task, dtype = sys.argv[1:]
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    pipeline = transformers.pipeline(task, model=checkpoint, dtype=getattr(torch, dtype), device="cpu")
    labels = pipeline.model.config.label2id

    def work(request: dict[str, Any]) -> dict[str, Any]:
        started = time.perf_counter()
        inputs = request.get("texts") or [Image.open(file) for file in request["files"]]
        found = pipeline(inputs, batch_size=request["batch"])
        seconds = time.perf_counter() - started
        best = [each[0]["token"] if "token" in each[0] else labels[each[0]["label"]] for each in found]
        return {"seconds": seconds, "best": best}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
