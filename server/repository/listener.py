"""What a repository reports: models that come and go, and what happens inside each of them."""

from typing import TYPE_CHECKING

from server.observability.observer import NoOpObserver, Observer

if TYPE_CHECKING:
    from server.repository.repository import Repository


class RepositoryListener:
    """Ignores everything that a repository reports; a subclass overrides what it needs. Methods must not raise."""

    def observer(self, name: str, version: str) -> Observer:
        """The observer of a version that is about to be loaded."""
        return NoOpObserver()

    async def changed(self, repository: "Repository") -> None:
        """Models were loaded, failed to load, or were unloaded."""

    def gone(self, name: str, version: str) -> None:
        """A version was unloaded and has answered all of its requests, or it failed to load."""
