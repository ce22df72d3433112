"""A saved graph in ONNX Runtime, by default on its CPU provider: the session that measures an artifact.

The CPU provider computes half precision through casts, which is slow but exact enough to show whether a graph is right.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from export.errors import ExportError
from export.graph.recipes import Arrays, Ports, Recipe

ERRORS_ONLY = 3
TYPES = {
    "INT64": "tensor(int64)",
    "INT32": "tensor(int32)",
    "INT8": "tensor(int8)",
    "FP32": "tensor(float)",
    "FP16": "tensor(float16)",
}
NUMPY: dict[str, type[np.generic]] = {
    "INT64": np.int64,
    "INT32": np.int32,
    "INT8": np.int8,
    "FP32": np.float32,
    "FP16": np.float16,
}
PROVIDER = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPTIONS: dict[str, dict[str, str]] = {CUDA: {"use_tf32": "0"}}  # full fp32, as in the server
FATAL = 4


class Runtime:
    """One loaded graph. ExportError if it does not load, or if the provider is missing."""

    def __init__(self, path: Path, provider: str = PROVIDER) -> None:
        self.provider = provider
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to other processes
        try:
            self.session = onnxruntime.InferenceSession(
                path,
                options,
                providers=[(name, OPTIONS.get(name, {})) for name in dict.fromkeys((provider, PROVIDER))],
                enable_fallback=0,
            )
        except Exception as error:  # the runtime has no common base for its errors
            raise ExportError(f"{path.name}: ONNX Runtime does not load it: {error}") from error
        if self.session.get_providers()[0] != provider:
            raise ExportError(f"{path.name}: ONNX Runtime does not load {provider} on this machine")

    def run(self, inputs: Arrays) -> Arrays:
        """All outputs by name."""
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, inputs), strict=True))

    def check(self, recipe: Recipe, precision: str) -> None:
        """ExportError if the names, datatypes or axes differ from the recipe's; names are compared first."""
        sides = (
            ("input", self.session.get_inputs(), recipe.inputs(precision)),
            ("output", self.session.get_outputs(), recipe.outputs(precision)),
        )
        for what in ("names", "datatypes", "axes"):
            for side, nodes, ports in sides:
                found = {
                    "names": [node.name for node in nodes],
                    "datatypes": [f"{node.name} {node.type}" for node in nodes],
                    "axes": [f"{node.name} {list(node.shape)}" for node in nodes],
                }[what]
                expected = {
                    "names": list(ports),
                    "datatypes": [f"{name} {TYPES[port.datatype]}" for name, port in ports.items()],
                    "axes": [f"{name} {list(port.shape)}" for name, port in ports.items()],
                }[what]
                if found != expected:
                    raise ExportError(f"the graph's {side}s, {what}: found {found}, expected {expected}")


def load_on_cuda(path: Path) -> Runtime:
    """A graph on this machine's GPU. ExportError if the runtime can use no GPU."""
    if CUDA not in onnxruntime.get_available_providers():
        raise ExportError(f"{path.name}: the installed ONNX Runtime has no {CUDA}")
    with quiet():
        onnxruntime.preload_dlls()
        return Runtime(path, CUDA)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the runtime's messages on the terminal that there is no GPU."""
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)


def description(provider: str = PROVIDER) -> str:
    """The runtime and provider of a measurement."""
    return f"onnxruntime {onnxruntime.__version__}, {provider}"


def empty_cache(ports: Ports, rows: int, capacity: int) -> Arrays:
    """Zeros for every cache input, for `capacity` tokens."""
    sizes = {"batch": rows, "capacity": capacity}
    return {
        name: np.zeros(port.sized(sizes), NUMPY[port.datatype])
        for name, port in ports.items()
        if name.startswith("past_")
    }


def with_cache(ports: Ports, inputs: Arrays) -> Arrays:
    """The inputs of a case and, for a GPT graph, an empty cache that is just large enough."""
    if "total_sequence_length" not in ports:
        return inputs
    rows, length = inputs["input_ids"].shape
    total: NDArray[np.int32] = np.array([length], np.int32)
    return inputs | {"total_sequence_length": total} | empty_cache(ports, rows, length)
