"""Models that torch has compiled, where it can: it may need a C compiler, which not every machine has."""

import time
from collections.abc import Callable
from typing import Any

import torch

COMPILED = {"cuda": {"mode": "reduce-overhead", "fullgraph": True}, "cpu": {"backend": "eager", "fullgraph": True}}
Run = Callable[[Any], object]  # asks a model, once


def compiled(model: Any, provider: str, run: Run) -> tuple[str, Any]:
    """How it is called, and the model, which has run. Where torch cannot compile it, the name says why not."""
    torch.compiler.reset()  # what was compiled for another batch
    fast, started = torch.compile(model, **COMPILED[provider]), time.perf_counter()
    try:
        for _ in range(3):  # compile, capture as a CUDA graph, replay
            run(fast)
    except Exception as error:  # of any kind: the figures of everything else are still wanted
        said = " ".join(str(error).split()).replace("|", "/")
        print(f"torch could not compile: {type(error).__name__}: {error}")
        run(model)
        return f"not compiled ({type(error).__name__}: {said[:80]})", model
    print(f"torch compiled in {time.perf_counter() - started:.0f} s")
    return "compiled", fast
