"""Where the control groups of this process are, which say how much of the machine it was given."""

from collections.abc import Iterator
from pathlib import Path


def control_groups(root: Path, controller: str) -> list[Path]:
    """The directories of this process's group and of those above it, for both versions of the mechanism.

    `controller` is cpu or memory. Not all of them need to exist.
    """
    mount = root / "sys/fs/cgroup"
    return [mount, mount / controller, *_inside(root, mount, controller)]


def _inside(root: Path, mount: Path, controller: str) -> Iterator[Path]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        inside = Path(path.lstrip("/"))
        yield from ((mount / controller if controllers else mount) / above for above in (inside, *inside.parents))
