"""One ONNX Runtime session over one graph, on the provider that was chosen. Knows no tasks and no batches."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from server.arrays import Array
from server.artifact import Artifact
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.host.cpus import usable_cpus
from server.runtime.capture_lock import beside_captures
from server.runtime.cuda import CPU, CUDA, ERROR
from server.runtime.providers import OPENVINO, ProviderChoice, openvino_device

PROVIDER_NAMES = {CUDA: "cuda", OPENVINO: "openvino", CPU: "cpu"}
# With weights in 8 or 4 bits OpenVINO multiplies whole numbers if it may round groups of so many numbers of an input
# by a scale of their own, and if the blocks of the weights (export/graph/quantise.py) consist of such groups; else it
# converts the weights to fp32. BERT-base with int8 weights, 8 texts of 128 tokens, on AVX512-VNNI: 2.2 times as fast as
# fp32 in groups of 128, 1.4 times in its own of 32, no faster in groups larger than the blocks (22 November 2026).
OPENVINO_ROUNDED: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
OPENVINO_PRECISIONS: dict[str, dict[str, str | int]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8-weights": OPENVINO_ROUNDED,
    "int4-weights": OPENVINO_ROUNDED,
}
NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
# What inputs may hold of the device, beside the arena that `gpu_mem_limit` bounds. By the steps of server/batching/
# shapes.py, the inputs of all shapes of 64 images of 224 x 224 pixels are 240 MB; all those of texts are far less.
MAX_BOUND_BYTES = 256 << 20
MAX_BOUND_SHAPES = 1024
NODES_NAMED = 3  # of those that a provider does not run
RUNTIME_SHARE = 4  # of what such a limit leaves beside the graph of generation, the runtime has one part in so many
SPIN_US = "200"
BOUND_SHARE = 8  # of a limit on the session's memory, inputs may hold one part in so many


class Session:
    """Runs the graph. `provider` and `precision` are what really computes."""

    def __init__(self, ort: onnxruntime.InferenceSession, *, provider: str, precision: str, device: int = 0) -> None:
        self.ort = ort
        self.provider = provider
        self.precision = precision
        self.device = device
        self.input_names = tuple(node.name for node in ort.get_inputs())
        self.output_names = tuple(node.name for node in ort.get_outputs())
        self._eager = run_options()
        self.input_types = {node.name: NUMPY_TYPES[node.type] for node in ort.get_inputs()}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """The named outputs. Blocks without holding the interpreter's lock."""
        with beside_captures(self.provider):
            return self._run(feeds, outputs)

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        return dict(zip(outputs, self.ort.run(list(outputs), dict(feeds), self._eager), strict=True))


def run_options(graph: int = -1) -> onnxruntime.RunOptions:
    """Run as the CUDA graph of that number, capturing it the first time; -1: run it node by node."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


class BoundSession(Session):
    """Keeps its inputs on the device, in memory that runs of the same shapes share, and fetches what is wanted alone.

    The other outputs stay where they are. Inputs hold up to `max_bytes`, or as much as one run needs if that is more:
    shapes that were not seen for long make room. To be used by one thread at a time.
    """

    def __init__(
        self,
        ort: onnxruntime.InferenceSession,
        *,
        provider: str,
        precision: str,
        device: int = 0,
        max_bytes: int = MAX_BOUND_BYTES,
    ) -> None:
        super().__init__(ort, provider=provider, precision=precision, device=device)
        self._max_bytes, self._bytes = max_bytes, 0
        self._place = ("cuda", device) if provider == "cuda" else ("cpu", 0)
        self._bound: OrderedDict[object, _Bound] = OrderedDict()  # the one used last at the end

    @property
    def shapes(self) -> int:
        """For how many shapes of its inputs it holds memory."""
        return len(self._bound)

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        bound = self._bound_to(feeds)
        for name, value in feeds.items():
            bound.inputs[name].update_inplace(np.ascontiguousarray(value))
        for name in outputs:
            bound.binding.bind_output(name, *self._place)
        try:
            self.ort.run_with_iobinding(bound.binding)
            return dict(zip(outputs, bound.binding.copy_outputs_to_cpu(), strict=True))
        finally:
            bound.binding.clear_binding_outputs()  # their memory is the next run's, of whatever shapes

    def _bound_to(self, feeds: Mapping[str, Array]) -> "_Bound":
        key = tuple((name, value.shape) for name, value in feeds.items())
        if key not in self._bound:
            self._make_room(sum(value.nbytes for value in feeds.values()))
            self._bound[key] = self._bind(feeds)
            self._bytes += self._bound[key].bytes
        self._bound.move_to_end(key)
        return self._bound[key]

    def _make_room(self, size: int) -> None:
        """Before it is taken: what was used last goes last."""
        while self._bound and (self._bytes + size > self._max_bytes or self.shapes >= MAX_BOUND_SHAPES):
            _, forgotten = self._bound.popitem(last=False)
            self._bytes -= forgotten.bytes

    def _bind(self, feeds: Mapping[str, Array]) -> "_Bound":
        binding, inputs = self.ort.io_binding(), {}
        for name, value in feeds.items():
            inputs[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype, *self._place)
            binding.bind_ortvalue_input(name, inputs[name])
        return _Bound(binding, inputs, sum(value.nbytes for value in feeds.values()))


@dataclass(frozen=True)
class _Bound:
    """A run of certain shapes, ready to be filled."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    bytes: int  # of the inputs


def open_session(
    artifact: Artifact, choice: ProviderChoice, settings: Settings, *, device: int = 0, precision: str | None = None
) -> Session:
    """A session over the graph for the chosen provider, on one of its devices. OpenVINO may be given a `precision`.

    BadArtifact if the graph does not load, ProviderUnavailable if something else than what was chosen would run it.
    """
    graph = artifact.graph(choice.target)
    options = _options(settings)
    if choice.provider == "openvino":
        precision = precision or graph.precision
        _add_openvino(options, precision=precision, threads=options.intra_op_num_threads)
        providers: dict[str, object] = {}
    else:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = {"providers": _providers(artifact, choice, device, settings), "enable_fallback": 0}
    path = artifact.path(graph.file)
    try:
        with beside_captures(choice.provider):
            ort = onnxruntime.InferenceSession(path, options, **providers)
    except Exception as error:  # the runtime has no common base for its errors
        raise BadArtifact(f"{path}: does not load on {choice.provider}: {error}") from error
    found = PROVIDER_NAMES.get(ort.get_providers()[0], ort.get_providers()[0])
    if found != choice.provider:
        raise ProviderUnavailable(f"{path}: found provider {found}, expected {choice.provider}")
    if found == "cuda":
        _check_placement(ort, path)
    precision = precision or graph.precision
    if found == "cuda" and _is_bound(artifact):
        max_bytes = _bound_bytes(settings)
        return BoundSession(ort, provider=found, precision=precision, device=device, max_bytes=max_bytes)
    return Session(ort, provider=found, precision=precision, device=device)


def _check_placement(ort: onnxruntime.InferenceSession, path: Path) -> None:
    """What CUDA has no kernel for goes to the CPU in silence, and copies with it."""
    elsewhere = [
        f"{node.op_type} {node.name} on {PROVIDER_NAMES.get(part.ep_name, part.ep_name)}"
        for part in ort.get_provider_graph_assignment_info()
        if part.ep_name != CUDA
        for node in part.get_nodes()
    ]
    if elsewhere:
        named = ", ".join(elsewhere[:NODES_NAMED]) + (", …" if len(elsewhere) > NODES_NAMED else "")
        raise ProviderUnavailable(f"{path}: found {len(elsewhere)} nodes elsewhere ({named}), expected all on cuda")


def _is_bound(artifact: Artifact) -> bool:
    """Of a model with a cache the decoder binds."""
    return not artifact.manifest.HasField("cache")


def bytes_beside(artifact: Artifact, settings: Settings) -> int:
    """Of a limit on a GPU's memory, what the arena may not take: it is for bound inputs, or for generation's cache."""
    if _is_bound(artifact):
        return _bound_bytes(settings)
    beside_graph = max(0, (settings.gpu_memory_mb << 20) - artifact.graph_bytes("cuda"))
    return beside_graph - beside_graph // RUNTIME_SHARE


def _bound_bytes(settings: Settings) -> int:
    limit = settings.gpu_memory_mb << 20
    return min(MAX_BOUND_BYTES, limit // BOUND_SHARE) if limit else MAX_BOUND_BYTES


def _options(settings: Settings) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    options.intra_op_num_threads = settings.threads or usable_cpus()
    options.inter_op_num_threads = 1
    # Between two operators of a run a thread waits awake for a while, because waking it takes as long as a small
    # operator; at the end of the run it sleeps, so that idle models leave the CPUs to others. GPT-2 with int8 weights
    # on a 2-core Xeon: 10.0 ms a token without, 5.8 with; BERT-base beside ViT-B/16: the same (22 November 2026).
    # One pool for all sessions (set_global_thread_pool_sizes) would spin between runs, too.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def _providers(artifact: Artifact, choice: ProviderChoice, device: int, settings: Settings) -> list[object]:
    if choice.provider == "cpu":
        return [CPU]
    cuda = {
        "device_id": str(device),
        "arena_extend_strategy": "kSameAsRequested",  # lengths vary: powers of two would hold twice what is needed
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would run again for each new shape
        "use_tf32": "0",  # it would multiply with ten bits what a graph in fp32 has been proven with
    }
    if artifact.manifest.task == "generate":
        cuda["enable_cuda_graph"] = "1"  # for the runs that ask for it
    if settings.gpu_memory_mb:
        cuda["gpu_mem_limit"] = str((settings.gpu_memory_mb << 20) - bytes_beside(artifact, settings))
    return [(CUDA, cuda), CPU]


def _add_openvino(options: onnxruntime.SessionOptions, *, precision: str, threads: int) -> None:
    """OpenVINO has threads of its own, beside the runtime's."""
    config = {"CPU": {**OPENVINO_PRECISIONS[precision], "INFERENCE_NUM_THREADS": threads}}
    options.add_provider_for_devices([openvino_device()], {"load_config": json.dumps(config)})
