"""A recipe → an ONNX graph, by torch's exporter. Nothing else: no fusing, no saving."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir
import torch

from export.graph.recipes import DTYPES, Recipe

OPSET = 20  # the first with Gelu as a node of its own, which the fusions look for
# Sizes to trace with: above 1, so that the exporter takes none for a constant, and all different.
SIZES = {"batch": 3, "sequence": 5, "capacity": 7, "selected": 4}
NOISE = (  # warnings about the exporter's own code
    r".*will not be used, since it shares the same shape constraints with another axis",
    r".*isinstance\(treespec, LeafSpec\)` is deprecated",
)


def trace(recipe: Recipe, precision: str) -> onnx_ir.Model:
    """The graph of `recipe`, whose model is already in `precision`; names and axes are those of its ports."""
    inputs = recipe.inputs(precision)
    example = {name: torch.ones(port.sized(SIZES), dtype=DTYPES[port.datatype]) for name, port in inputs.items()}
    axes = {
        name: {i: size for i, size in enumerate(port.shape) if isinstance(size, str)} for name, port in inputs.items()
    }
    with quiet(), recipe.prepared(), torch.no_grad():
        program = torch.onnx.export(
            recipe.eval(),
            kwargs={"inputs": example},
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(recipe.outputs(precision)),
            dynamic_shapes={"inputs": axes},
            verbose=False,
        )
    if program is None:
        raise AssertionError("the exporter returned no program: this is a bug")
    return program.model


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages of torch's exporter for its own developers."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in NOISE:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.setLevel(level)
