"""The kind of CPU of this machine, as Linux reports it: its name, its instruction sets, and its physical cores."""

import os
import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

NAMES = ("model name", "cpu model", "CPU part")  # of /proc/cpuinfo on x86-64, others, and arm64
VNNI = {"avx_vnni", "avx512_vnni"}
OVERLOAD = 1.25  # threads for each CPU: one for each is what a single process needs
INSTRUCTION_SETS = ("flags", "Features")  # on x86-64 and arm64


@dataclass(frozen=True)
class Processor:
    """A kind of CPU. Equal kinds run the same kernels."""

    name: str
    instruction_sets: frozenset[str] = frozenset()
    vendor: str = ""  # as x86-64 names it: GenuineIntel, AuthenticAMD

    @property
    def saturates(self) -> bool:
        """Whether sums of products of 8-bit numbers saturate at 16 bits: x86 without VNNI."""
        return "avx2" in self.instruction_sets and not VNNI & self.instruction_sets


def read_processor(root: Path = Path("/")) -> Processor:
    """The kind of the first CPU; without /proc/cpuinfo its name alone."""
    try:
        lines = (root / "proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return Processor(platform.processor() or platform.machine())
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = next((fields[key] for key in NAMES if key in fields), platform.machine())
    flags = next((fields[key] for key in INSTRUCTION_SETS if key in fields), "")
    return Processor(name, frozenset(flags.split()), fields.get("vendor_id", ""))


def physical_cores(cpus: Collection[int] | None = None, root: Path = Path("/")) -> int:
    """The number of physical cores behind these CPUs, by default those of this process.

    CPUs that Linux does not describe count as cores of their own.
    """
    if cpus is None:
        cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len({_siblings(cpu, root) for cpu in cpus})


def is_overloaded() -> bool:
    """Whether more threads than this machine has CPUs have been running or waiting, on average over the last minute."""
    try:
        load, _, _ = os.getloadavg()
    except OSError:  # unknown here
        return False
    return load > OVERLOAD * (os.cpu_count() or 1)


def _siblings(cpu: int, root: Path) -> str:
    """The CPUs on the same core, such as `0,32`."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
