"""What an image installs, out of pyproject.toml: `python requirements.py EXTRA` prints it in pip's words.

The lines are those that `make install` reads, so there is no second list. One differs: an image without CUDA takes
plain onnxruntime in place of onnxruntime-gpu, wherever it is built. It is 270 MB smaller, and the two cannot be
installed together.
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
    wanted = [*project["dependencies"], *project["optional-dependencies"][extra]]
    plain = not any(name_of(line) == GPU for line in project["optional-dependencies"][extra])
    for line in wanted:
        if plain and name_of(line) == GPU:
            continue
        yield line.partition(";")[0].strip() if plain and name_of(line) == PLAIN else line


def name_of(requirement: str) -> str:
    """`numpy` of `numpy>=2; python_version > "3"`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


if __name__ == "__main__":
    pyproject = tomllib.loads(Path("pyproject.toml").read_text())
    print(*requirements(pyproject["project"], sys.argv[1]), sep="\n")
