"""Can CUDA run here, and if not, why? Tries it; and asks the driver for the reason, which the runtime does not say."""

import contextlib
import ctypes
import io
from collections.abc import Iterator

import numpy as np
import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ERROR, FATAL = 3, 4  # levels of the runtime's log
DRIVER = "libcuda.so.1"
# What the provider is linked against, and cuDNN, which it loads when a graph needs it, as ours do for their reductions.
LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
# What onnxruntime-gpu has machine code for, and it has nothing else: a device runs code of its own major number, up to
# its own minor number.
ARCHITECTURES = ((7, 5), (8, 0), (9, 0), (12, 0))
COMPUTE_CAPABILITY = (75, 76)  # the driver's numbers for the attributes: major, minor
# An ONNX graph of one node, y = x + x, x FP32 [1]: the smallest thing that needs a device to run.
PROBE = bytes.fromhex(
    "08083a350a0e0a01780a017812017922034164641201705a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001014"
)


def cuda_problem(device: int) -> str | None:
    """Why CUDA cannot be used on the device of that number; None if a graph has just run there."""
    if CUDA not in onnxruntime.get_available_providers():
        return "the installed onnxruntime was built without it; install onnxruntime-gpu"
    with _quiet():
        onnxruntime.preload_dlls()
        if missing := _missing_libraries():
            return missing
        said = _probe(device)
    return said and (_driver_problem(device) or said)


def _probe(device: int) -> str | None:
    """What the runtime says if a small graph does not run on the device."""
    providers = [(CUDA, {"device_id": str(device)}), CPU]
    try:
        session = onnxruntime.InferenceSession(PROBE, providers=providers, enable_fallback=0)
        if session.get_providers()[0] != CUDA:
            return "the runtime refused it without a reason"
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:  # the runtime has no common base for its errors
        return str(error).strip().splitlines()[0]
    return None


def _missing_libraries() -> str | None:
    if not _loads(DRIVER):
        return f"{DRIVER} is missing: NVIDIA's driver brings it (and `docker run --gpus all` into a container)"
    if missing := [name for name in LIBRARIES if not _loads(name)]:
        return f"missing: {', '.join(missing)}; onnxruntime-gpu[cuda,cudnn] brings them (the extra `cuda`)"
    return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _driver_problem(device: int) -> str | None:
    """What the driver knows to be in the way; None if it knows nothing."""
    driver = ctypes.CDLL(DRIVER)
    supported, devices, handle = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(supported))
    if supported.value < (expected := _version_number(onnxruntime.cuda_version)):
        return (
            f"NVIDIA's driver is too old: it supports CUDA {_version_text(supported.value)}, "
            f"expected {_version_text(expected)} or newer"
        )
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(devices)):
        return f"NVIDIA's driver answers {_error_name(driver, status)}"
    if device >= devices.value:
        return f"found device {device}, expected one of {', '.join(map(str, range(devices.value))) or 'none'}"
    driver.cuDeviceGet(ctypes.byref(handle), device)
    found = tuple(_attribute(driver, attribute, handle) for attribute in COMPUTE_CAPABILITY)
    if not any(found[0] == major and found[1] >= minor for major, minor in ARCHITECTURES):
        known = ", ".join(f"{major}.{minor or 'x'}" for major, minor in ARCHITECTURES)
        return (
            f"device {device}: found compute capability {found[0]}.{found[1]}, expected one that onnxruntime-gpu "
            f"{onnxruntime.__version__} has code for: {known}"
        )
    return None


def _attribute(driver: ctypes.CDLL, attribute: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
    return value.value


def _error_name(driver: ctypes.CDLL, status: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(status, ctypes.byref(name))
    return f"{name.value.decode() if name.value else 'an error without a name'} ({status})"


def _version_number(text: str) -> int:
    """As CUDA counts: 13.0 is 13000."""
    major, minor = text.split(".")[:2]
    return int(major) * 1000 + int(minor) * 10


def _version_text(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the runtime from writing to the terminal what the caller will say better."""
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(ERROR)
