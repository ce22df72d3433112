"""Prints how generation uses CUDA, as JSON; runs with the stand-in libraries on LD_LIBRARY_PATH.

With the stand-ins, memory and copies are real (in the memory of the process), and kernels are not. So this shows how
the cache is moved and how steps are bound, not what they compute.
"""

import json
import sys
from ctypes import c_size_t, c_void_p
from pathlib import Path

import numpy as np

from server.artifact import read_artifact
from server.config.settings import Settings
from server.errors import NotEnoughMemory, ProviderUnavailable
from server.generation.cuda_graphs import CapturingDecoder
from server.generation.device_memory import CudaMemory
from server.generation.open import make_decoder, make_layout, make_memory
from server.runtime.open import open_session, reserved_bytes
from server.runtime.providers import ProviderChoice
from server.runtime.session import Session

TO_DEVICE = 1


def show(directory: Path) -> dict[str, object]:
    settings, narrow = Settings(provider="cuda"), Settings(provider="cuda", gpu_memory_mb=64)
    artifact = read_artifact(directory)
    session = open_session(artifact, ProviderChoice("cuda"), settings, enable_cuda_graph=True)
    limited = open_session(artifact, ProviderChoice("cuda"), narrow, enable_cuda_graph=True)
    return {
        "options": session.ort.get_provider_options()["CUDAExecutionProvider"],
        "arena_limit": int(limited.ort.get_provider_options()["CUDAExecutionProvider"]["gpu_mem_limit"]),
        "cache_limit": reserved_bytes(artifact, narrow),
        "graph_bytes": artifact.graph_bytes("cuda"),
        "moved": moved(),
        "refused": refused(session),
        "graphs": captured(session),
        "placement": misplaced(directory),
    }


def misplaced(directory: Path) -> str:
    """The error for a graph that runs on CUDA only in part: GroupQueryAttention in fp32."""
    artifact = read_artifact(directory)
    next(graph for graph in artifact.manifest.graphs if graph.target == "cuda").file = "cpu.onnx"
    try:
        open_session(artifact, ProviderChoice("cuda"), Settings(provider="cuda"))
    except ProviderUnavailable as error:
        return str(error)
    return ""


def moved() -> list[int]:
    """Memory that was written, grown, and copied from its first rows to its second ones."""
    memory = CudaMemory(0)
    address = memory.allocate(64, 64)
    source = np.arange(1, 17, dtype=np.uint8)
    memory._call("cudaMemcpy", c_void_p(address), c_void_p(source.ctypes.data), c_size_t(16), TO_DEVICE)
    address = memory.grow(address, 64, 128)
    memory.copy(source=address, target=address + 32, pitch=8, width=3, height=2)
    memory.synchronize()
    return memory.read(address, 128).tolist()


def refused(session: Session) -> str:
    """The error for a cache that is larger than its limit."""
    layout = make_layout(session, slots=8, max_slots=8, capacity=64)
    try:
        make_decoder(session, layout, make_memory(session, limit=6 * layout.bytes(1)))
    except NotEnoughMemory as error:
        return str(error)
    return ""


def captured(session: Session) -> list[str]:
    """The graph ids of steps of 1, 2 and 4 rows, and of a step of 2 rows after the cache has grown."""
    decoder = make_decoder(session, make_layout(session, slots=4, max_slots=8, capacity=64), make_memory(session))
    assert isinstance(decoder, CapturingDecoder)
    steps = [decoder._bind_decode(size) for size in (1, 2, 4)]
    decoder.grow(8)
    return [step.options.get_run_config_entry("gpu_graph_id") for step in (*steps, decoder._bind_decode(2))]


if __name__ == "__main__":
    print(json.dumps(show(Path(sys.argv[1]))))
