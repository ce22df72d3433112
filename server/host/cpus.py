"""The number of CPUs this process may use, which can be fewer than the machine has."""

import math
import os
from pathlib import Path

from server.host.cgroups import control_groups


def usable_cpus(root: Path = Path("/")) -> int:
    """The CPUs of the affinity mask, limited by the quota of the control groups; at least one."""
    quota = _quota_cpus(root)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, math.ceil(quota)) if quota else allowed)


def _quota_cpus(root: Path) -> float | None:
    """The smallest quota of the control groups of this process, in CPUs; None without a quota."""
    quotas = [quota for group in control_groups(root, "cpu") if (quota := _read_quota(group)) is not None]
    return min(quotas, default=None)


def _read_quota(group: Path) -> float | None:
    """The quota of one group in CPUs. v2 has quota and period in `cpu.max`, v1 in two files; both in microseconds."""
    try:
        if (file := group / "cpu.max").exists():
            quota, period = file.read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None
