"""One ONNX Runtime session over one graph. Knows no tasks and no batches."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from server.arrays import Array
from server.runtime.capture_lock import cuda_read_lock

NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
}
# The runtime's errors have no common base.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    MemoryError,
    *(kind for kind in vars(runtime).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


class Session:
    """Runs the graph. `provider` and `precision` are those that the session computes with."""

    def __init__(self, ort: onnxruntime.InferenceSession, *, provider: str, precision: str, device: int = 0) -> None:
        self.ort = ort
        self.provider = provider
        self.precision = precision
        self.device = device
        self.input_names = tuple(node.name for node in ort.get_inputs())
        self.output_names = tuple(node.name for node in ort.get_outputs())
        self._eager = run_options()
        self.input_types = {node.name: NUMPY_TYPES[node.type] for node in ort.get_inputs()}
        self.output_types = {node.name: NUMPY_TYPES[node.type] for node in ort.get_outputs()}
        self.tensor_shapes = {node.name: tuple(node.shape) for node in (*ort.get_inputs(), *ort.get_outputs())}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """The named outputs. Releases the interpreter lock while it runs."""
        with cuda_read_lock(self.provider):
            return self._run(feeds, outputs)

    def io_binding(self) -> onnxruntime.IOBinding:
        """An empty binding for `run_bound`."""
        return self.ort.io_binding()

    def run_bound(self, binding: onnxruntime.IOBinding, options: onnxruntime.RunOptions) -> None:
        """Run with the inputs and outputs of a binding. The caller holds the capture lock."""
        self.ort.run_with_iobinding(binding, options)

    def release_captured_graph(self, graph: int) -> None:
        """Free the CUDA graph that a run with `run_options(graph)` captured."""
        self.ort.release_captured_graph(graph)

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return dict(zip(outputs, self.ort.run(list(outputs), dict(feeds), self._eager), strict=True))


def run_options(graph: int = -1) -> onnxruntime.RunOptions:
    """Options to run as the CUDA graph of this number, which the first run captures; -1: run without a CUDA graph."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options
