"""The state of each version of a model, as RepositoryIndex reports it. Knows neither directories nor sessions."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from server.errors import AffinityError, BadArtifact, NotEnoughMemory, ProviderUnavailable

LOADING, READY, UNLOADING, UNAVAILABLE = "LOADING", "READY", "UNLOADING", "UNAVAILABLE"  # as Triton calls them
# Why a version could not be loaded, in a word. Other errors are INTERNAL.
FAILURES: dict[type[Exception], str] = {
    BadArtifact: "artifact",
    ProviderUnavailable: "provider",
    NotEnoughMemory: "memory",
}
INTERNAL = "internal"


@dataclass(frozen=True)
class Entry:
    """The state of one version of a model, served or not. `failure` is a word for the reason if it failed to load."""

    name: str
    version: str
    state: str
    reason: str = ""
    failure: str = ""


class VersionStates:
    """The states of the versions that were loaded, or failed to load, since the server started."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, int], Entry] = {}

    def all(self) -> Mapping[tuple[str, int], Entry]:
        return self._entries

    def of(self, name: str) -> list[Entry]:
        """The states of all versions of one model."""
        return [entry for (model, _), entry in self._entries.items() if model == name]

    def names(self) -> list[str]:
        return sorted({name for name, _ in self._entries})

    def failures(self) -> list[Entry]:
        """The versions that failed to load, and those that are served as they were before a change that failed.

        May be called from any thread.
        """
        return [entry for entry in list(self._entries.values()) if entry.failure]

    def note(self, name: str, number: int, state: str, reason: str = "", failure: str = "") -> None:
        self._entries[name, number] = Entry(name, str(number), state, reason, failure)

    def note_failure(self, name: str, number: int, error: BaseException, *, served: bool) -> None:
        """Note why a version could not be loaded, or not again if it is `served`.

        A cancelled load is not a failure.
        """
        if not isinstance(error, Exception):
            if not served:
                self.note(name, number, UNAVAILABLE, reason_of(error))
            return
        failure = next((FAILURES[kind] for kind in type(error).__mro__ if kind in FAILURES), INTERNAL)
        self.note(name, number, READY if served else UNAVAILABLE, reason_of(error), failure)

    def note_unload(self, name: str, number: int, state: str, reason: str = "") -> None:
        """Note the state of a version that is being unloaded, unless it was never served."""
        entry = self._entries.get((name, number))  # None: it was never served, and is forgotten
        if entry is not None and entry.state in (READY, UNLOADING):
            self.note(name, number, state, reason)

    def forget(self, name: str, *, found: Collection[int]) -> None:
        """Forget the versions of a model that are not available, unless they are in `found`."""
        gone = [number for model, number in self._entries if model == name and number not in found]
        for number in gone:
            if self._entries[name, number].state == UNAVAILABLE:
                del self._entries[name, number]


def reason_of(error: BaseException) -> str:
    """The text of an error for users, without the details of a fault of the server."""
    return str(error) if isinstance(error, AffinityError) else "could not be loaded"
