"""Checks whether CUDA can run here, by running a small graph. If not, finds the reason, which the runtime omits."""

import contextlib
import ctypes
import io
from collections.abc import Iterator

import numpy as np
import onnxruntime

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ERROR, FATAL = 3, 4  # log levels of the runtime
DRIVER = "libcuda.so.1"
# The libraries that the provider is linked against, and cuDNN, which it loads for operators such as reductions.
LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")
# The compute capabilities that onnxruntime-gpu has machine code for; it has no PTX. A device runs code of the same
# major version and of at most its own minor version.
ARCHITECTURES = ((7, 5), (8, 0), (9, 0), (12, 0))
COMPUTE_CAPABILITY = (75, 76)  # the driver's attribute numbers of the major and minor version
# An ONNX graph of one node, y = x + x, with x FP32 of shape [1]: a minimal graph that needs the device.
PROBE = bytes.fromhex(
    "08083a350a0e0a01780a017812017922034164641201705a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a001014"
)


def cuda_problem(device: int) -> str | None:
    """The reason why CUDA cannot be used on this device; None if a small graph ran there."""
    if CUDA not in onnxruntime.get_available_providers():
        return "the installed onnxruntime was built without it; install onnxruntime-gpu"
    with _quiet():
        onnxruntime.preload_dlls()
        if missing := _missing_libraries():
            return missing
        problem = _probe(device)
    return problem and (_driver_problem(device) or problem)


def _probe(device: int) -> str | None:
    """The runtime's message if a small graph does not run on the device."""
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
        return f"{DRIVER} is missing: it comes with NVIDIA's driver (in a container, with `docker run --gpus all`)"
    if missing := [name for name in LIBRARIES if not _loads(name)]:
        return f"missing: {', '.join(missing)}; install onnxruntime-gpu[cuda,cudnn] (the extra `cuda`)"
    return None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _driver_problem(device: int) -> str | None:
    """The reason according to the driver; None if it gives none."""
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
    """A version as CUDA encodes it: 13.0 is 13000."""
    major, minor = text.split(".")[:2]
    return int(major) * 1000 + int(minor) * 10


def _version_text(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the runtime's messages on the terminal; the caller reports the reason."""
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(ERROR)
