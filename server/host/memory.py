"""The memory this process can still allocate, within the limits of the machine and of its control groups."""

import ctypes
from pathlib import Path

from server.host.cgroups import control_groups

# For cgroups v2 and v1: the limit, the usage, and the part of the usage that can be reclaimed.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(root: Path = Path("/")) -> int:
    """The bytes that can be allocated before the kernel kills this process."""
    groups = control_groups(root, "memory")
    available = [free for group in groups for names in FILES if (free := _group_bytes(group, *names)) is not None]
    return max(0, min([_machine_bytes(root), *available]))


def release_free_memory() -> None:
    """Return freed memory to the system. glibc keeps much of it; with other C libraries this does nothing."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _machine_bytes(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["MemAvailable"].split()[0]) * 1024


def _group_bytes(group: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        maximum = (group / limit).read_text().strip()
        if not maximum.isdecimal():  # "max"
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(maximum) - int((group / used).read_text()) + int(statistics.get(reclaimable, 0))
    except (OSError, ValueError):
        return None
