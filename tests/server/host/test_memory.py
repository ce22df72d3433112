"""A process in a container must not take the host's memory for its own."""

import platform
import subprocess
import sys

import pytest

from server.host.memory import available_bytes
from tests.serving import ROOT

MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemFree:  100 kB\nMemAvailable:  4000 kB\n"}
STATISTICS = "anon 7\ninactive_file 1000\ntotal_inactive_file 1000\n"


def group(path: str, limit: str, used: int, *, version: int = 2) -> dict[str, str]:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    return {f"{path}/{names[0]}": limit, f"{path}/{names[1]}": str(used), f"{path}/memory.stat": STATISTICS}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4_096_000),
        (group("sys/fs/cgroup", "max", 5), 4_096_000),
        (group("sys/fs/cgroup", "3000000", 2_000_000), 1_001_000),
        (group("sys/fs/cgroup", "3000000", 9_000_000), 0),
        (group("sys/fs/cgroup/memory", "3000000", 2_000_000, version=1), 1_001_000),
        (group("sys/fs/cgroup/memory", str(2**63 - 4096), 2_000_000, version=1), 4_096_000),
        ({"proc/self/cgroup": "0::/a/b", **group("sys/fs/cgroup/a", "3000000", 2_000_000)}, 1_001_000),
        ({"sys/fs/cgroup/memory.max": "nonsense"}, 4_096_000),
    ],
    ids=str,
)
def test_the_smallest_room_of_the_machine_and_its_control_groups_counts(tmp_path, files, expected):
    for name, text in (MACHINE | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_bytes(tmp_path) == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not keep freed memory so")
def test_freed_memory_is_returned_to_the_system():
    """In a process of its own: 128 MB in blocks that glibc keeps after they are freed."""
    program = """
import ctypes, pathlib, re
from server.host.memory import release_free_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
blocks = [libc.malloc(1 << 16) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 16)
for block in blocks[:-1]:
    libc.free(block)
before = resident()
release_free_memory()
print(before - resident())
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(found.stdout) > 64_000  # KB
