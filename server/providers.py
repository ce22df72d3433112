"""What computes on this machine: CUDA, OpenVINO or the CPU. Finds out by trying: the runtime falls back in silence.

A provider asked for by name is required; only `auto` falls back, and says why.
"""

import contextlib
import ctypes
import importlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from server.errors import ProviderUnavailable
from server.settings import Settings

CUDA, OPENVINO, CPU = "CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"
OPENVINO_PACKAGE = "onnxruntime-ep-openvino"
BF16_FLAGS = ("amx_bf16", "avx512_bf16")
ERROR, FATAL = 3, 4  # levels of the runtime's log
# An ONNX graph of one node, y = x + x, x FP32 [1]: the smallest thing that needs a device to run.
PROBE = bytes.fromhex(
    "08083a350a0e0a01780a017812017922034164641201705a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001014"
)


@dataclass(frozen=True)
class ProviderChoice:
    """What will run. `reason` says why it is not something faster, if `auto` chose."""

    provider: str  # cuda, openvino, cpu
    device: int = 0
    reason: str = ""

    @property
    def target(self) -> str:
        """Which graph of an artifact it takes."""
        return "cuda" if self.provider == "cuda" else "cpu"


def choose_provider(settings: Settings) -> ProviderChoice:
    """Try the provider that the settings name; ProviderUnavailable with the reason if it cannot run here."""
    if settings.provider == "cpu":
        return ProviderChoice("cpu")
    if settings.provider == "openvino":
        openvino_device()
        return ProviderChoice("openvino")
    problem = cuda_problem(settings.device)
    if problem is None:
        return ProviderChoice("cuda", settings.device)
    if settings.provider == "auto":
        return ProviderChoice("cpu", reason=f"CUDA cannot be used: {problem}")
    raise ProviderUnavailable(f"provider cuda cannot run here: {problem}")


def cuda_problem(device: int) -> str | None:
    """Why CUDA cannot be used; None if a graph has just run on it."""
    if CUDA not in onnxruntime.get_available_providers():
        return "the installed onnxruntime was built without it; install onnxruntime-gpu"
    with _quiet():
        onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(
                PROBE, providers=[(CUDA, {"device_id": str(device)}), CPU], enable_fallback=0
            )
            if session.get_providers()[0] != CUDA:
                return _missing_library() or "the runtime refused it without a reason"
            session.run(None, {"x": np.ones(1, np.float32)})
        except Exception as error:  # the runtime has no common base for its errors
            return str(error).strip().splitlines()[0]
    return None


def _missing_library() -> str | None:
    """What the dynamic loader says about the provider's library: the runtime only logs it."""
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as error:
        return f"{error} (the extra `cuda` brings CUDA's libraries, NVIDIA's driver brings libcuda)"
    return None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the runtime from writing to the terminal what the caller will say better."""
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(ERROR)


def openvino_device() -> Any:
    """OpenVINO's CPU device of the plugin package, registered with the runtime; ProviderUnavailable without it."""
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ImportError as error:
        raise ProviderUnavailable(
            f"provider openvino cannot run here: {error} (pip install {OPENVINO_PACKAGE})"
        ) from error
    if not (devices := _openvino_devices()):
        try:
            onnxruntime.register_execution_provider_library("openvino", plugin.get_library_path())
        except Exception as error:  # the runtime has no common base for its errors
            raise ProviderUnavailable(f"provider openvino cannot run here: {error}") from error
        devices = _openvino_devices()
    if not devices:
        raise ProviderUnavailable(f"provider openvino cannot run here: {OPENVINO_PACKAGE} found no device it can use")
    return devices[0]


def _openvino_devices() -> list[Any]:
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    return [
        device for device in onnxruntime.get_ep_devices() if device.ep_name == OPENVINO and device.device.type == cpu
    ]


def cpu_has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether matrix products in bf16 are faster than in fp32 here."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return any(flag in flags for flag in BF16_FLAGS)
