"""Print the requirements of an image from pyproject.toml in pip's format: `python requirements.py EXTRA`.

They are the requirements that `make install` uses, with one exception: images without CUDA have plain onnxruntime on
every machine, which is 270 MB smaller than onnxruntime-gpu, and images with CUDA have onnxruntime-gpu alone. The two
packages cannot be installed together.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GPU, PLAIN = "onnxruntime-gpu", "onnxruntime"


def requirements(project: dict[str, Any], extra: str) -> Iterator[str]:
    """The requirements of the project with one of its extras."""
    optional = project["optional-dependencies"][extra]
    without_cuda = not any(package_name(line) == GPU for line in optional)
    unwanted = GPU if without_cuda else PLAIN
    for line in (*project["dependencies"], *optional):
        package = package_name(line)
        if package != unwanted:
            yield line.partition(";")[0].strip() if package == PLAIN else line


def package_name(requirement: str) -> str:
    """The package of a requirement: `numpy` for `numpy>=2; python_version > "3"`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


if __name__ == "__main__":
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())
    print(*requirements(pyproject["project"], sys.argv[1]), sep="\n")
