"""Polls the directory of artifacts: serves new versions when they are complete, and unloads those that are gone.

The version policy chooses among the versions that are complete and have not failed. A version that fails is tried again
when its files have changed; until then the others are served as if it was not there. A model is left alone while its
directory does not change, so that a model that was unloaded by a call stays unloaded.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from server.config.settings import Settings
from server.config.version_policy import Versions
from server.errors import AffinityError, BadArtifact
from server.repository.repository import Repository
from server.repository.scan import Fingerprint, Found, Scanner

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What to do with the versions of a model. All versions that are in neither tuple are unloaded."""

    load: tuple[int, ...]  # for the first time, or again because their files have changed
    keep: tuple[int, ...]  # as they are served now


def plan(
    found: Mapping[int, Found],
    served: Collection[int],
    *,
    loaded: Mapping[int, Fingerprint],
    failed: Mapping[int, Fingerprint],
    policy: Versions,
) -> Plan:
    """Choose the versions to serve.

    `loaded` and `failed` have the fingerprints with which versions were loaded, and failed to load. A version that is
    served stays a candidate if its files have changed and are not complete or have failed: it is served as it was.
    """
    usable = {n for n, each in found.items() if not each.problem and failed.get(n) != each.fingerprint}
    chosen = policy.choose(n for n in found if n in usable or n in served)
    load = tuple(n for n in chosen if n in usable and (n not in served or loaded.get(n) != found[n].fingerprint))
    return Plan(load, tuple(n for n in chosen if n not in load))


class Poller:
    """Brings a repository up to date with the directory, one poll at a time."""

    def __init__(self, repository: Repository, settings: Settings) -> None:
        self._repository, self._settings = repository, settings
        self._scanner = Scanner(settings.artifacts, settings.models)
        self._last: dict[str, dict[int, Found]] = {}
        self._loaded: dict[str, dict[int, Fingerprint]] = {}  # by model and version, as `plan` needs them
        self._failed: dict[str, dict[int, Fingerprint]] = {}
        self._reported: set[tuple[str, int]] = set()  # problems that the log has as a warning
        self._readable = True

    async def start(self) -> None:
        """Remember the state of the directory, before the repository loads its models from it."""
        with suppress(OSError):  # the repository reports that there are no models
            self._last = await asyncio.to_thread(self._scanner.scan)
        for name, found in self._last.items():
            self._loaded[name] = {number: each.fingerprint for number, each in found.items()}
            self._note_problems(name, found)

    async def run(self) -> None:
        """Poll until cancelled."""
        log.info("polling %s every %g s", self._settings.artifacts, self._settings.poll_artifacts)
        while True:
            await asyncio.sleep(self._settings.poll_artifacts)
            try:
                await self.poll()
            except Exception:
                log.exception("polling %s failed", self._settings.artifacts)

    async def poll(self) -> None:
        """Scan the directory, and update each model whose versions have changed since the last poll."""
        try:
            found = await asyncio.to_thread(self._scanner.scan)
        except OSError as error:
            if self._readable:
                log.warning("cannot read %s: %s; the models stay as they are", self._settings.artifacts, error.strerror)
            self._readable = False
            return
        self._readable = True
        for name in sorted(found.keys() | self._last.keys()):
            last, now = self._last.get(name, {}), found.get(name, {})
            self._last[name] = now
            if now == last:
                self._report_problems(name, now)
            else:
                await self._update(name, now, gone=last.keys() - now.keys())
            if not now:
                del self._last[name]
        for name in self._repository.names():
            if not self._settings.models or name in self._settings.models:
                self._repository.forget(name, found=found.get(name, {}))

    async def _update(self, name: str, found: Mapping[int, Found], *, gone: Collection[int]) -> None:
        """Serve the versions that the policy chooses. If one fails, choose again without it."""
        loaded, failed = self._loaded.setdefault(name, {}), self._failed.setdefault(name, {})
        for number in gone:
            loaded.pop(number, None)
            failed.pop(number, None)
            self._reported.discard((name, number))
        self._note_problems(name, found)
        while True:
            served, policy = self._repository.served_versions(name), self._settings.of(name).versions
            todo = plan(found, served, loaded=loaded, failed=failed, policy=policy)
            if not todo.load and set(todo.keep) == served:
                return
            fingerprints = {number: found[number].fingerprint for number in todo.load}
            try:
                directories = {number: found[number].directory for number in todo.load}
                await self._repository.update(name, directories, keep=todo.keep)
            except Exception as error:
                failures = self._repository.failed_versions(name) & fingerprints.keys()
                for number in failures or fingerprints:
                    failed[number] = fingerprints[number]
                    loaded.pop(number, None)
                self._log_failure(name, failures, error)
            else:
                loaded |= fingerprints

    def _wanted(self, name: str, found: Mapping[int, Found]) -> list[tuple[int, Found]]:
        """The versions with a problem that would be served without it."""
        chosen = self._settings.of(name).versions.choose(found)
        return [(number, found[number]) for number in chosen if found[number].problem]

    def _note_problems(self, name: str, found: Mapping[int, Found]) -> None:
        """Note which versions are not complete. They are left alone."""
        for number, each in self._wanted(name, found):
            log.debug("%s version %d is not complete: %s", name, number, each.problem)
            self._repository.note_problem(name, number, BadArtifact(f"not complete: {each.problem}"))
            self._loaded[name].pop(number, None)
            self._reported.discard((name, number))

    def _report_problems(self, name: str, found: Mapping[int, Found]) -> None:
        """Log once which versions are not complete although their files have not changed since the last poll."""
        for number, each in self._wanted(name, found):
            if (name, number) not in self._reported:
                self._reported.add((name, number))
                log.warning("%s version %d is not loaded, because it is not complete: %s", name, number, each.problem)

    def _log_failure(self, name: str, failures: Collection[int], error: Exception) -> None:
        served = self._repository.served_versions(name)
        log.error(
            "%s version %s is not loaded: %s; %s",
            name,
            ", ".join(map(str, sorted(failures))),
            error if isinstance(error, AffinityError) else "a fault of the server",
            f"still serving {', '.join(map(str, sorted(served)))}" if served else "no other version is served",
            exc_info=None if isinstance(error, AffinityError) else error,
        )
