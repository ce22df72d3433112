"""Selects the versions of a model to serve: those in the directory that the settings choose. Loads nothing."""

from pathlib import Path

from server.artifact import newest, versions, why_incomplete
from server.config.settings import Settings
from server.errors import BadArtifact, ModelNotFound


def select(settings: Settings, name: str) -> dict[int, Path]:
    """The directories of the versions to serve. Raises ModelNotFound if there are none, or one is missing."""
    root, wanted = settings.artifacts, settings.of(name).versions
    found = _find(settings, name)
    if not found:
        raise ModelNotFound(f"model {name}: found no such directory in {root}")
    if missing := set(wanted.named) - found.keys():
        raise ModelNotFound(
            f"model {name}: found versions {', '.join(map(str, found))} in {root}, expected also "
            f"{', '.join(map(str, sorted(missing)))}: --set {name}.versions={wanted}"
        )
    return {number: found[number] for number in wanted.choose(found)}


def select_complete(settings: Settings, name: str) -> dict[int, Path]:
    """The directories of the versions to serve, out of those that are complete. Raises ModelNotFound as `select`.

    A model that the settings name needs one: otherwise BadArtifact says why it has none.
    """
    selected, found = select(settings, name), _find(settings, name)
    problems = {number: why_incomplete(directory) for number, directory in found.items()}
    complete = settings.of(name).versions.choose(number for number in found if not problems[number])
    if not complete and name in settings.models:
        raise BadArtifact(f"model {name}: found no complete version: {problems[max(selected)]}")
    return {number: found[number] for number in complete}


def _find(settings: Settings, name: str) -> dict[int, Path]:
    return versions(settings.artifacts, name) if name in newest(settings.artifacts) else {}
