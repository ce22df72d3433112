"""Opens a session over a graph of an artifact on the chosen provider. Knows no tasks and no batches."""

import json
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from server.artifact import Artifact
from server.config.settings import Settings
from server.errors import BadArtifact, ProviderUnavailable
from server.host.cpus import usable_cpus
from server.runtime.capture_lock import cuda_read_lock
from server.runtime.cuda import CPU, CUDA, ERROR
from server.runtime.io_binding import MAX_BOUND_BYTES, BoundSession
from server.runtime.providers import OPENVINO, ProviderChoice, openvino_device
from server.runtime.session import Session

PROVIDER_NAMES = {CUDA: "cuda", OPENVINO: "openvino", CPU: "cpu"}
# With weights in 8 or 4 bits, OpenVINO multiplies integers if it may quantise the activations in groups of this size,
# and if the blocks of the weights (export/graph/quantise.py) consist of such groups; otherwise it converts the weights
# to fp32. BERT-base with int8 weights, 8 texts of 128 tokens, on AVX512-VNNI: 2.2 times as fast as fp32 in groups of
# 128, 1.4 times in the default groups of 32, no faster in groups larger than the blocks (22 November 2026).
OPENVINO_QUANTISED: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128}
OPENVINO_PRECISIONS: dict[str, dict[str, str | int]] = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8-weights": OPENVINO_QUANTISED,
    "int4-weights": OPENVINO_QUANTISED,
}
MAX_LISTED_NODES = 3  # in an error about nodes that a provider does not run
ARENA_DIVISOR = 4  # the arena of a model with a cache gets one part in four of the memory that its graph leaves
SPIN_US = "200"
BOUND_DIVISOR = 8  # bound inputs get at most one part in eight of a memory limit


def open_session(
    artifact: Artifact,
    choice: ProviderChoice,
    settings: Settings,
    *,
    device: int = 0,
    graph_precision: str = "",
    precision: str | None = None,
    config: Sequence[tuple[str, str]] = (),
    enable_cuda_graph: bool = False,
) -> Session:
    """A session over a graph for the chosen provider, on one of its devices.

    `graph_precision` chooses among the artifact's graphs for the provider, by default the first one. `precision` is for
    OpenVINO, which can compute in another precision than the graph's. `enable_cuda_graph` lets the caller capture runs
    as CUDA graphs (`run_options`); CUDA then refuses graphs with nodes on other providers.

    Raises BadArtifact if there is no such graph or it does not load, ProviderUnavailable if another provider would run
    any of its nodes.
    """
    graph = artifact.graph(choice.target, graph_precision)
    options = _options(settings)
    for name, value in config:
        options.add_session_config_entry(name, value)
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
        with cuda_read_lock(choice.provider):
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
    """Raise ProviderUnavailable for nodes on the CPU, where the runtime silently places nodes that CUDA cannot run."""
    elsewhere = [
        f"{node.op_type} {node.name} on {PROVIDER_NAMES.get(part.ep_name, part.ep_name)}"
        for part in ort.get_provider_graph_assignment_info()
        if part.ep_name != CUDA
        for node in part.get_nodes()
    ]
    if elsewhere:
        named = ", ".join(elsewhere[:MAX_LISTED_NODES]) + (", …" if len(elsewhere) > MAX_LISTED_NODES else "")
        raise ProviderUnavailable(f"{path}: found {len(elsewhere)} nodes elsewhere ({named}), expected all on cuda")


def _is_bound(artifact: Artifact) -> bool:
    """Whether the session binds its inputs. For a model with a cache, the decoder does."""
    return not artifact.manifest.HasField("cache")


def reserved_bytes(artifact: Artifact, settings: Settings) -> int:
    """The part of `gpu_memory_mb` that the arena must not use: for bound inputs, or for the cache of generation."""
    if _is_bound(artifact):
        return _bound_bytes(settings)
    without_graph = max(0, (settings.gpu_memory_mb << 20) - artifact.graph_bytes("cuda"))
    return without_graph - without_graph // ARENA_DIVISOR


def _bound_bytes(settings: Settings) -> int:
    limit = settings.gpu_memory_mb << 20
    return min(MAX_BOUND_BYTES, limit // BOUND_DIVISOR) if limit else MAX_BOUND_BYTES


def _options(settings: Settings) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERROR
    options.intra_op_num_threads = settings.threads or usable_cpus()
    options.inter_op_num_threads = 1
    # Threads spin between two operators of a run, because waking a thread takes as long as a small operator. They stop
    # at the end of the run, so that idle models use no CPU. GPT-2 with int8 weights on a 2-core Xeon: 10.0 ms a token
    # without spinning, 5.8 with; BERT-base and ViT-B/16 together: no difference (22 November 2026). A global thread
    # pool (set_global_thread_pool_sizes) would also spin between runs.
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
        "arena_extend_strategy": "kSameAsRequested",  # powers of two would waste half of the memory
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would be repeated for each new shape
        "use_tf32": "0",  # TF32 has a mantissa of 10 bits, and parity is measured in fp32
    }
    if enable_cuda_graph:
        cuda["enable_cuda_graph"] = "1"  # for runs with a graph id
    if settings.gpu_memory_mb:
        cuda["gpu_mem_limit"] = str((settings.gpu_memory_mb << 20) - reserved_bytes(artifact, settings))
    return [(CUDA, cuda), CPU]


def _add_openvino(options: onnxruntime.SessionOptions, *, precision: str, threads: int) -> None:
    """Add OpenVINO to the options, with its own number of threads."""
    config = {"CPU": {**OPENVINO_PRECISIONS[precision], "INFERENCE_NUM_THREADS": threads}}
    options.add_provider_for_devices([openvino_device()], {"load_config": json.dumps(config)})
