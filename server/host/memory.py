"""How much memory this process may still take: of what the machine has, and of what it was given."""

from pathlib import Path

from server.host.cgroups import control_groups

# By version of the mechanism: limit, use, and the part of the use that is given back on demand.
FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_bytes(root: Path = Path("/")) -> int:
    """What can be taken before the system, or a control group above this process, ends it."""
    groups = control_groups(root, "memory")
    left = [room for group in groups for names in FILES if (room := _left(group, *names)) is not None]
    return max(0, min([_of_the_machine(root), *left]))


def _of_the_machine(root: Path) -> int:
    lines = (root / "proc/meminfo").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(fields["MemAvailable"].split()[0]) * 1024


def _left(group: Path, limit: str, used: str, reclaimable: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if not most.isdecimal():  # "max"
            return None
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most) - int((group / used).read_text()) + int(statistics.get(reclaimable, 0))
    except (OSError, ValueError):
        return None
