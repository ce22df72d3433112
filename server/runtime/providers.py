"""Finds the providers that can run on this machine, by trying them: the runtime falls back to others silently.

A provider that the settings name is required. Only `auto` falls back, with the reason.
"""

import functools
import importlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from server.config.settings import Settings
from server.errors import ProviderUnavailable
from server.host.processor import read_processor
from server.runtime.cuda import cuda_problem

OPENVINO = "OpenVINOExecutionProvider"
OPENVINO_PACKAGE = "onnxruntime-ep-openvino"
OPENVINO_MACHINES = ("x86_64", "AMD64")  # of platform.machine(); the extra `cpu` installs the package on these only
# With AVX512-BF16 but without AMX, OpenVINO is slower in bf16 than in fp32: BERT-base, 8 texts of 128 tokens, 1.2 s and
# 0.8 s on a 2-core Xeon, 22 November 2026.
FAST_BF16 = "amx_bf16"


@dataclass(frozen=True)
class ProviderChoice:
    """A provider that a model can run on, with one session on each device. Only CUDA can have several devices."""

    provider: str  # cuda, openvino, cpu
    devices: tuple[int, ...] = (0,)

    @property
    def target(self) -> str:
        """The target of the graph that runs on this provider."""
        return "cuda" if self.provider == "cuda" else "cpu"


@dataclass(frozen=True)
class Providers:
    """The usable providers, best first. `reason` says why `auto` found no better one."""

    choices: tuple[ProviderChoice, ...]
    reason: str = ""

    def __str__(self) -> str:
        return " or ".join(choice.provider for choice in self.choices)


def find_providers(settings: Settings) -> Providers:
    """The provider that the settings name. Raises ProviderUnavailable, with the reason, if it cannot run here.

    `auto` chooses CUDA, otherwise OpenVINO, otherwise the CPU; the CPU runs the models that the others cannot run.
    """
    if settings.provider != "auto":
        return Providers((_required(settings),))
    try:
        return Providers((_cuda(settings), ProviderChoice("cpu")))
    except ProviderUnavailable as error:
        reason = str(error)
    try:
        openvino_device()
    except ProviderUnavailable as error:
        return Providers((ProviderChoice("cpu"),), f"{reason}; {error}")
    return Providers((ProviderChoice("openvino"), ProviderChoice("cpu")), reason)


def _required(settings: Settings) -> ProviderChoice:
    if settings.provider == "cuda":
        return _cuda(settings)
    if settings.provider == "openvino":
        openvino_device()
    return ProviderChoice(settings.provider)


def _cuda(settings: Settings) -> ProviderChoice:
    for device in settings.device:
        if problem := cuda_problem(device):
            raise ProviderUnavailable(f"provider cuda cannot run here: {problem}")
    return ProviderChoice("cuda", settings.device)


def openvino_device() -> Any:
    """OpenVINO's CPU device, from the plugin package. Raises ProviderUnavailable if there is none."""
    if problem := _register_openvino():
        raise ProviderUnavailable(f"provider openvino cannot run here: {problem}")
    return _openvino_devices()[0]


@functools.cache  # the runtime can register a library only once in a process
def _register_openvino() -> str:
    """Register the plugin with the runtime. Returns the reason if there is no device, otherwise an empty text."""
    try:
        plugin = importlib.import_module("onnxruntime_ep_openvino")
    except ImportError as error:
        return f"{error} ({_how_to_install_openvino()})"
    try:
        onnxruntime.register_execution_provider_library("openvino", plugin.get_library_path())
    except Exception as error:  # the runtime has no common base for its errors
        return str(error)
    return "" if _openvino_devices() else f"{OPENVINO_PACKAGE} found no device it can use; it supports Intel CPUs only"


def _how_to_install_openvino() -> str:
    if platform.machine() in OPENVINO_MACHINES:
        return f"pip install {OPENVINO_PACKAGE}"
    return f"{OPENVINO_PACKAGE} exists for x86-64 only, this machine is {platform.machine()}"


def _openvino_devices() -> list[Any]:
    cpu = onnxruntime.OrtHardwareDeviceType.CPU
    return [
        device for device in onnxruntime.get_ep_devices() if device.ep_name == OPENVINO and device.device.type == cpu
    ]


def cpu_has_bf16(root: Path = Path("/")) -> bool:
    """Whether this CPU multiplies matrices faster in bf16 than in fp32."""
    return FAST_BF16 in read_processor(root).instruction_sets
