"""One line for the log: what the models run on, and what would be faster on this machine. Pure."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from server.host.processor import Processor
from server.runtime.providers import OPENVINO_PACKAGE

INTEL = "GenuineIntel"
# Instructions that multiply matrices, the fastest first, with the flags that show them.
INSTRUCTIONS = {
    "AMX": {"amx_bf16", "amx_int8"},
    "AVX512-VNNI": {"avx512_vnni"},
    "AVX-VNNI": {"avx_vnni"},
    "AVX512": {"avx512f"},
    "AVX2": {"avx2"},
}
MULTIPLY_BYTES = ("AMX", "AVX512-VNNI", "AVX-VNNI")  # elsewhere weights in 8 bits are slower than fp32 for most models
EXPORT = "export with --target cpu=fp32,cpu={}"
FEWER_BITS = {"generate": "int8-weights"}  # by task; of all other tasks: int8-dynamic


@dataclass(frozen=True)
class Facts:
    """What the line depends on."""

    providers: Collection[str]  # of the models that are served
    cpu: Processor
    cpus: int  # that the server may use
    requested: str  # the setting --provider
    devices: Collection[int] = ()  # of CUDA
    gpu_found: bool = False
    cuda_problem: str = ""  # why CUDA cannot run; empty without a GPU, and if it runs
    openvino_installed: bool = False
    only_fp32: Mapping[str, str] = field(default_factory=dict)  # model → task, without a graph for CPUs in fewer bits


def summary(facts: Facts) -> tuple[str, bool]:
    """The line, and whether it is a warning: a GPU is there and not used."""
    idle_gpu = facts.gpu_found and "cuda" not in facts.providers
    parts = [f"runs on {' and '.join(sorted(facts.providers)) or 'nothing yet'}: {_hardware(facts)}"]
    if idle_gpu:
        problem = f"provider cuda cannot run here: {facts.cuda_problem}" if facts.cuda_problem else ""
        parts.append(f"a GPU was found, but {problem or _not_requested(facts)}")
    if faster := _faster(facts):
        parts.append(f"faster: {', or '.join(faster)}")
    return "; ".join(parts), idle_gpu and bool(facts.cuda_problem)


def instructions(cpu: Processor) -> str:
    """The best of INSTRUCTIONS that a CPU has; empty if it has none of them."""
    return next((name for name, flags in INSTRUCTIONS.items() if flags & cpu.instruction_sets), "")


def _hardware(facts: Facts) -> str:
    if set(facts.providers) == {"cuda"}:
        return f"GPU {', '.join(map(str, facts.devices))}"
    cpus = f"{facts.cpus} CPU{'s' * (facts.cpus != 1)}"
    return ", ".join(part for part in (facts.cpu.name, cpus, instructions(facts.cpu)) if part)


def _not_requested(facts: Facts) -> str:
    return f"--provider is {facts.requested}" if facts.requested != "auto" else "no model runs on it"


def _faster(facts: Facts) -> list[str]:
    """What would be faster. A GPU that is there comes before everything that concerns the CPU."""
    if facts.gpu_found:
        return []
    found = []
    if facts.requested == "auto" and facts.cpu.vendor == INTEL and not facts.openvino_installed:
        found.append(f"pip install {OPENVINO_PACKAGE}")
    if facts.only_fp32 and instructions(facts.cpu) in MULTIPLY_BYTES:
        for precision in ("int8-dynamic", "int8-weights"):
            models = [m for m, task in facts.only_fp32.items() if FEWER_BITS.get(task, "int8-dynamic") == precision]
            found += [f"{EXPORT.format(precision)} ({', '.join(sorted(models))})"] if models else []
    return found
