"""The top-level folders, and the imports that packages must not need."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("models", "export", "server", "protos")
FOLDERS = {"export", "server", "protos", "models", "tests", "docker"}
FILES = {"pyproject.toml", "README.md", "LICENSE", "Makefile"}


def tracked_files() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_top_folder_contains_only_known_names() -> None:
    top = {path.split("/")[0] for path in tracked_files()}
    assert {name for name in top if not name.startswith(".")} <= FOLDERS | FILES


@pytest.mark.parametrize("package", OURS)
def test_no_other_distribution_has_our_package_names(package: str) -> None:
    assert set(importlib.metadata.packages_distributions().get(package, [])) <= {"affinity"}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("models", ["onnx", "onnxruntime", "onnxscript", "grpc"]),
        ("server.__main__", ["torch", "grpc", "onnxruntime", "numpy"]),  # before the logs are ready
        ("server.serving", ["torch", "onnx", "onnxscript", "models", "export", "transformers"]),
        ("server.client", ["torch", "onnx", "onnxruntime", "models", "export", "tokenizers"]),
    ],
)
def test_a_package_imports_without_its_forbidden_modules(package: str, forbidden: list[str]) -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({forbidden!r})); import {package}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
