"""`make install` adds what this kind of machine makes use of."""

import importlib.util
from pathlib import Path

import pytest

from tests.serving import ROOT


@pytest.mark.parametrize(
    ("vendor", "architecture", "gpu", "extras"),
    [
        ("GenuineIntel", "x86_64", "", ["cpu"]),
        ("GenuineIntel", "x86_64", "dev/nvidiactl", []),
        ("GenuineIntel", "x86_64", "proc/driver/nvidia/version", []),
        ("AuthenticAMD", "x86_64", "", []),
        ("", "aarch64", "", []),
        (None, "arm64", "", []),  # without /proc
    ],
)
def test_openvino_is_installed_on_intel_cpus_without_a_gpu(
    tmp_path: Path, vendor: str | None, architecture: str, gpu: str, extras: list[str]
) -> None:
    if vendor is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    if gpu:
        (tmp_path / gpu).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / gpu).touch()
    spec = importlib.util.spec_from_file_location("install", ROOT / ".ci" / "install.py")
    install = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(install)
    assert install.extras_of_machine(tmp_path, architecture) == extras
