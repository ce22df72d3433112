"""Compiles models with torch, if it can: torch may need a C compiler."""

import time
from collections.abc import Callable
from typing import Any

import torch

COMPILED = {"cuda": {"mode": "reduce-overhead", "fullgraph": True}, "cpu": {"backend": "eager", "fullgraph": True}}
Run = Callable[[Any], object]  # runs a model once


def compiled(model: Any, provider: str, run: Run) -> tuple[str, Any]:
    """A description, and the compiled model after a few runs; or the reason and the model, if it cannot be compiled."""
    torch.compiler.reset()  # discards the code for another batch size
    fast, started = torch.compile(model, **COMPILED[provider]), time.perf_counter()
    try:
        for _ in range(3):  # compile, capture as a CUDA graph, replay
            run(fast)
    except Exception as error:  # of any kind: the other rows are still measured
        message = " ".join(str(error).split()).replace("|", "/")
        print(f"torch could not compile: {type(error).__name__}: {error}")
        run(model)
        return f"not compiled ({type(error).__name__}: {message[:80]})", model
    print(f"torch compiled in {time.perf_counter() - started:.0f} s")
    return "compiled", fast
