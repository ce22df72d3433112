"""The requirements of the images suit x86-64 and arm64."""

import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from tests.docker.engine import ROOT

MACHINES = ("x86_64", "aarch64")
FOR_X86_ONLY = {"onnxruntime-ep-openvino"}  # has no wheels for Linux on arm64


def installed(extra: str, machine: str) -> list[str]:
    """The packages that pip installs into an image on a machine, without their dependencies."""
    command = [sys.executable, "docker/requirements.py", extra]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    requirements = [Requirement(line) for line in done.stdout.splitlines()]
    environment = {"platform_machine": machine, "sys_platform": "linux"}
    return [each.name for each in requirements if not each.marker or each.marker.evaluate(environment)]


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
