"""If CUDA cannot be used, the server gives the reason in one line, and `auto` serves without it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from server.runtime.cuda import DRIVER, LIBRARIES
from tests.cuda import stub_libraries
from tests.serving import ROOT, served

NUMBER = "int {name}(int *n) {{ *n = {value}; return {status}; }}"
STATUS = "int {name}() {{ return {status}; }}"
NO_KERNEL = {name: STATUS.format(name=name, status=209) for name in ("cudaLaunchKernel", "cudaGetLastError")}


def capability(major: int, minor: int) -> dict[str, str]:
    """A device of this compute capability, whose kernels do not start."""
    answer = f"int cuDeviceGetAttribute(int *v, int a, int d) {{ *v = a == 75 ? {major} : {minor}; return 0; }}"
    return NO_KERNEL | {"cuDeviceGetAttribute": answer}


# Problem → functions of the libraries that show it, and the error of the server.
PROBLEMS = {
    "an old driver": (
        {
            "cuDriverGetVersion": NUMBER.format(name="cuDriverGetVersion", value=12040, status=0),
            "cudaGetDeviceCount": NUMBER.format(name="cudaGetDeviceCount", value=0, status=35),
            "cudaSetDevice": STATUS.format(name="cudaSetDevice", status=35),
        },
        "NVIDIA's driver is too old: it supports CUDA 12.4, expected 13.0 or newer",
    ),
    "no device": (
        {
            "cuInit": STATUS.format(name="cuInit", status=100),
            "cudaSetDevice": STATUS.format(name="cudaSetDevice", status=100),
        },
        "NVIDIA's driver answers CUDA_ERROR_STAND_IN (100)",
    ),
    "a device too many": (
        {
            "cuDeviceGetCount": NUMBER.format(name="cuDeviceGetCount", value=2, status=0),
            "cudaSetDevice": "int cudaSetDevice(int d) { return d < 2 ? 0 : 101; }",
        },
        "found device 7, expected one of 0, 1",
    ),
    "an old device": (capability(7, 0), "device 0: found compute capability 7.0, expected one that onnxruntime-gpu"),
    "a device too new": (
        capability(10, 0),
        "device 0: found compute capability 10.0, expected one that onnxruntime-gpu",
    ),
    "something else": (capability(9, 0), "stand-in"),  # the message of the runtime
}


@pytest.fixture
def environment(stand_ins: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a machine with other answers from these functions, and without these libraries."""

    def make(answers: dict[str, str], *, without: Sequence[str] = ()) -> dict[str, str]:
        usual, changed = shutil.copytree(stand_ins, tmp_path / "usual"), tmp_path / "changed"
        changed.mkdir()
        for library in without:
            (usual / library).unlink()
        stub_libraries.build_with(answers, changed)
        return os.environ | {"LD_LIBRARY_PATH": f"{changed}:{usual}"}

    return make


def loads(library: str) -> bool:
    return not subprocess.run(
        [sys.executable, "-c", f"import ctypes; ctypes.CDLL('{library}')"], capture_output=True
    ).returncode


def refusal(environment: dict[str, str], artifacts: Path, device: int = 0) -> str:
    """The output of `python -m server --provider cuda`, which must fail."""
    command = [sys.executable, "-m", "server", "--provider", "cuda", "--device", str(device)]
    command += ["--artifacts", artifacts, "--port", "0", "--http-port", "0"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_error_gives_the_reason_in_one_line(problem: str, environment: Callable, exported: Callable) -> None:
    answers, expected = PROBLEMS[problem]
    output = refusal(environment(answers), exported("tiny-vit").parents[1], device=7 if "too many" in problem else 0)
    assert re.fullmatch(rf".* ERROR +provider cuda cannot run here: [^\n]*{re.escape(expected)}[^\n]*\n", output), (
        output
    )


@pytest.mark.parametrize("library", [DRIVER, "libcublas.so.13", "libcudnn.so.9"])
def test_a_missing_library_is_named(library: str, environment: Callable, exported: Callable) -> None:
    if loads(library):
        pytest.skip(f"this machine has {library}")
    output = refusal(environment({}, without=[library]), exported("tiny-vit").parents[1])
    assert output.count("\n") == 1
    assert re.search(rf"cannot run here: (missing: )?{library}", output), output
    assert ("driver" if library == DRIVER else "onnxruntime-gpu[cuda,cudnn]") in output


def test_the_libraries_are_those_that_the_provider_is_linked_against(stand_ins: Path) -> None:
    assert set(stub_libraries.wanted()) == {DRIVER, *LIBRARIES}


def test_auto_serves_without_cuda_and_gives_the_reason(environment: Callable, exported: Callable) -> None:
    answers, expected = PROBLEMS["an old driver"]
    with served(exported("tiny-vit").parents[1], "--provider", "auto", environment=environment(answers)) as server:
        assert f"provider cuda cannot run here: {expected}" in server.banner
