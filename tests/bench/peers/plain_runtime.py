"""A bare ONNX Runtime session on the CPU in fp32, with a graph of `torch.onnx.export`: `CHECKPOINT KIND FILE`.

Exports to the file, unless it is there already. Asked with `file`, a .npz of ready tensors; runs its rows `batch` at a
time, with the language head everywhere.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

from tests.bench.peers import answering, ready


def open_peer() -> answering.Work:
    import onnxruntime
    import torch

    checkpoint, kind, graph = sys.argv[1:]
    if not Path(graph).exists():
        model, example = ready.torch_model(checkpoint, kind)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes = ready.dynamic(example)
            torch.onnx.export(model, (), graph, kwargs=example, dynamic_shapes=shapes, dynamo=True, verbose=False)
        del model
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def work(request: dict[str, Any]) -> dict[str, Any]:
        tensors, best = ready.load(request["file"]), []
        started = time.perf_counter()
        for feeds, at in ready.batches(tensors, request["batch"]):
            (logits,) = session.run(None, feeds)
            best += ready.best(logits, at)
        return {"seconds": time.perf_counter() - started, "best": best}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
