"""Finds the control groups of this process, which limit its share of the machine."""

from collections.abc import Iterator
from pathlib import Path


def control_groups(root: Path, controller: str) -> list[Path]:
    """The directories of the control group of this process and its ancestors, for cgroups v1 and v2.

    `controller` is cpu or memory. Some of the directories may not exist.
    """
    mount = root / "sys/fs/cgroup"
    return [mount, mount / controller, *_group_and_ancestors(root, mount, controller)]


def _group_and_ancestors(root: Path, mount: Path, controller: str) -> Iterator[Path]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group = Path(path.lstrip("/"))
        yield from ((mount / controller if controllers else mount) / directory for directory in (group, *group.parents))
