"""The events that a repository reports. A listener sees the models through the protocol `ServedModels`."""

from collections.abc import Sequence
from typing import Protocol

from server.observability.observer import NoOpObserver, Observer
from server.repository.model import Model


class ServedModels(Protocol):
    """The state of a repository."""

    @property
    def ready(self) -> bool:
        """Whether all models that the settings name were loaded, and the repository is not draining."""

    def models(self) -> Sequence[Model]:
        """All versions that are ready."""

    def names(self) -> Sequence[str]:
        """The name of each model that was loaded, or failed to load, since the server started."""


class RepositoryListener:
    """Ignores all events; a subclass overrides the methods that it needs. Methods must not raise."""

    def observer(self, name: str, version: str) -> Observer:
        """The observer of a version that is about to be loaded."""
        return NoOpObserver()

    async def changed(self, served: ServedModels) -> None:
        """Models were loaded, failed to load, or were unloaded."""

    def unloaded(self, name: str, version: str) -> None:
        """A version was unloaded and has answered all of its requests, or it failed to load."""
