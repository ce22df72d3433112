"""Traces each model once in a test run: nine tenths of the time of a tiny model's export are torch's exporter.

All else of an export runs each time, and compares the graph with PyTorch.
"""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import onnx_ir
import torch
from onnx_ir.passes.common import NameFixPass

from export.graph.recipes import Recipe
from tests.sharing import make_once

Trace = Callable[[Recipe, str], onnx_ir.Model]


class _Content(pickle.Pickler):
    """Pickles a model with digests in place of its weights, and the code of functions."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: object) -> object:
        if isinstance(value, FunctionType):  # also without a name
            code, bound = value.__code__, [repr(cell.cell_contents) for cell in value.__closure__ or ()]
            return value.__module__, value.__qualname__, code.co_code, repr(code.co_consts), code.co_names, bound
        if not isinstance(value, torch.Tensor):
            return None
        number = self._numbers.setdefault(id(value), len(self._numbers))  # a tensor in two places is one
        content = value.detach().contiguous().flatten().view(torch.uint8).numpy()
        return number, str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()


def digest_of(recipe: Recipe, precision: str) -> str:
    """Equal for models with the same modules, settings and weights."""
    content = io.BytesIO()
    _Content(content).dump((precision, recipe))
    return hashlib.sha256(content.getvalue()).hexdigest()


def traced_once(root: Path, trace: Trace) -> Trace:
    """Keep the graphs that `trace` returns in a directory that all workers share."""

    def load(recipe: Recipe, precision: str) -> onnx_ir.Model:
        name = digest_of(recipe, precision)
        path = root / f"{name}.onnx"

        def save() -> None:
            model = trace(recipe, precision)
            NameFixPass()(model)  # the exporter may give a name twice, which no file can have
            onnx_ir.save(model, path)

        make_once(root, name, save)
        return onnx_ir.load(path)

    return load
