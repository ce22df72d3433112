"""Opens a session over a graph of an artifact, on the chosen provider. Knows no tasks and no batches."""

import json
from pathlib import Path

import onnxruntime

from server.artifact import Artifact
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.host.cpus import usable_cpus
from server.runtime.capture_lock import beside_captures
from server.runtime.cuda import CPU, CUDA, ERROR
from server.runtime.io_binding import MAX_BOUND_BYTES, BoundSession
from server.runtime.providers import OPENVINO, ProviderChoice, openvino_device
from server.runtime.session import Session

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
NODES_NAMED = 3  # of those that a provider does not run
RUNTIME_SHARE = 4  # of what such a limit leaves beside the graph of generation, the runtime has one part in so many
SPIN_US = "200"
BOUND_SHARE = 8  # of a limit on the session's memory, inputs may hold one part in so many


def open_session(
    artifact: Artifact,
    choice: ProviderChoice,
    settings: Settings,
    *,
    device: int = 0,
    precision: str | None = None,
    enable_cuda_graph: bool = False,
) -> Session:
    """A session over the graph for the chosen provider, on one of its devices.

    `precision` is for OpenVINO, which can compute in another than the graph's. `enable_cuda_graph` lets the caller
    capture runs as CUDA graphs (`run_options`); CUDA then refuses graphs with nodes on other providers.

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
        providers = {
            "providers": _providers(artifact, choice, device, settings, enable_cuda_graph=enable_cuda_graph),
            "enable_fallback": 0,
        }
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


def _providers(
    artifact: Artifact, choice: ProviderChoice, device: int, settings: Settings, *, enable_cuda_graph: bool
) -> list[object]:
    if choice.provider == "cpu":
        return [CPU]
    cuda = {
        "device_id": str(device),
        "arena_extend_strategy": "kSameAsRequested",  # lengths vary: powers of two would hold twice what is needed
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would run again for each new shape
        "use_tf32": "0",  # it would multiply with ten bits what a graph in fp32 has been proven with
    }
    if enable_cuda_graph:
        cuda["enable_cuda_graph"] = "1"  # for the runs that ask for it
    if settings.gpu_memory_mb:
        cuda["gpu_mem_limit"] = str((settings.gpu_memory_mb << 20) - bytes_beside(artifact, settings))
    return [(CUDA, cuda), CPU]


def _add_openvino(options: onnxruntime.SessionOptions, *, precision: str, threads: int) -> None:
    """OpenVINO has threads of its own, beside the runtime's."""
    config = {"CPU": {**OPENVINO_PRECISIONS[precision], "INFERENCE_NUM_THREADS": threads}}
    options.add_provider_for_devices([openvino_device()], {"load_config": json.dumps(config)})
