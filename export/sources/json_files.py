"""The JSON files of a source."""

import json
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.sources.lfs import check_no_pointer


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file. ExportError if the file has anything else."""
    found = read_any_json(path)
    if not isinstance(found, dict):
        raise ExportError(f"{path.name}: found a {type(found).__name__}, expected an object")
    return found


def read_any_json(path: Path) -> Any:
    """The value in a JSON file; an empty object if there is no such file."""
    if not path.is_file():
        return {}
    check_no_pointer(path)
    try:
        return json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ExportError(f"{path.name}: found no valid JSON ({error}), expected an object") from error
