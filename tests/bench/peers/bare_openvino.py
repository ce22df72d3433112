"""Plain OpenVINO with its own conversion of a checkpoint: `CHECKPOINT KIND PRECISION`.

Asked with `file`, a .npz of ready tensors; runs its rows `batch` at a time, with the language head everywhere.
"""

import sys
import time
from typing import Any

from tests.bench.peers import answering, ready


def open_peer() -> answering.Work:
    import openvino
    import torch

    checkpoint, kind, precision = sys.argv[1:]
    model, example = ready.torch_model(checkpoint, kind)
    program = torch.export.export(model, (), example, dynamic_shapes=ready.dynamic(example))
    converted = openvino.convert_model(program)
    compiled = openvino.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    )

    def work(request: dict[str, Any]) -> dict[str, Any]:
        tensors, best = ready.load(request["file"]), []
        started = time.perf_counter()
        for feeds, at in ready.batches(tensors, request["batch"]):
            best += ready.best(compiled(feeds)[0], at)
        return {"seconds": time.perf_counter() - started, "best": best}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
