"""The requirements of the images, and the pinned packages of the servers' images, suit x86-64 and arm64."""

import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tests.docker.engine import ROOT

MACHINES = ("x86_64", "aarch64")
FOR_X86_ONLY = {"onnxruntime-ep-openvino"}  # has no wheels for Linux on arm64
PYTHONS = ("3.11.9", "3.12.4", "3.13.1")


def required(extra: str, machine: str, python: str = PYTHONS[0]) -> list[Requirement]:
    """The requirements of an image on a machine, without their dependencies."""
    command = [sys.executable, "docker/requirements.py", extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return suited(done.stdout.splitlines(), machine, python)


def pinned(extra: str, machine: str, python: str) -> dict[str, str]:
    """Package → version in the lock of an image, dependencies included."""
    entries = (ROOT / "docker" / "lock" / f"{extra}.txt").read_text().replace("\\\n", "").splitlines()
    packages = [entry.partition(" --hash=")[0] for entry in entries if not entry.startswith("#")]
    return {each.name: str(each.specifier).removeprefix("==") for each in suited(packages, machine, python)}


def suited(lines: list[str], machine: str, python: str) -> list[Requirement]:
    """The requirements whose markers suit Linux on a machine."""
    environment = {"platform_machine": machine, "sys_platform": "linux", "python_full_version": python}
    requirements = [Requirement(line) for line in lines]
    return [each for each in requirements if not each.marker or each.marker.evaluate(environment)]


def installed(extra: str, machine: str) -> list[str]:
    """The packages that pip installs into an image on a machine, without their dependencies."""
    return [each.name for each in required(extra, machine)]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("extra", "expected"),
    [("cpu", "onnxruntime"), ("export", "onnxruntime"), ("cuda", "onnxruntime-gpu")],
)
def test_an_image_has_one_kind_of_onnxruntime(extra: str, expected: str, machine: str) -> None:
    assert set(installed(extra, machine)) & {"onnxruntime", "onnxruntime-gpu"} == {expected}


def test_the_image_for_arm64_has_all_but_openvino() -> None:
    x86, arm = (set(installed("cpu", machine)) for machine in MACHINES)
    assert x86 - arm == FOR_X86_ONLY
    assert not arm - x86


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("machine", MACHINES)
def test_the_pinned_packages_are_those_that_the_project_requires(machine: str, python: str) -> None:
    packages = pinned("cpu", machine, python)
    missing = [
        str(each)
        for each in required("cpu", machine, python)
        if each.name not in packages or packages[each.name] not in each.specifier
    ]
    assert not missing, "run make lock"


def test_the_pinned_packages_of_the_image_with_cuda_are_those_that_the_project_requires() -> None:
    packages = pinned("cuda", "x86_64", PYTHONS[1])
    assert all(packages[each.name] in each.specifier for each in required("cuda", "x86_64", PYTHONS[1]))
    assert {"nvidia-cublas", "nvidia-cudnn-cu13"} <= set(packages)


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_every_pinned_package_has_hashes_and_names_no_index(extra: str) -> None:
    text = (ROOT / "docker" / "lock" / f"{extra}.txt").read_text()
    entries = [entry for entry in text.replace("\\\n", "").splitlines() if not entry.startswith("#")]
    assert all(re.search(r"^[\w.-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)
    assert "://" not in text
