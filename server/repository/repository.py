"""The models that are served: finds the model of a request, loads and unloads versions, and records their states."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from server.artifact import newest, versions
from server.config.settings import EVERY_MODEL, Settings
from server.errors import BadArtifact, ModelNotFound, NotReady, hide_directory
from server.host.cpus import usable_cpus
from server.host.memory import release_free_memory
from server.host.priority import yield_to_event_loop
from server.images.decode_pool import DecodePool
from server.repository.listener import RepositoryListener
from server.repository.loader import ModelLoader
from server.repository.model import Model, TaskT
from server.repository.selection import select, select_complete
from server.repository.states import LOADING, READY, UNAVAILABLE, UNLOADING, Entry, VersionStates, reason_of
from server.tasks.registry import names_of, only_model

RELEASE_AFTER_S = 1.0

log = logging.getLogger(__name__)


class Repository:
    """Loads the versions of models that the settings choose, and finds the model that a request names."""

    def __init__(self, settings: Settings, listener: RepositoryListener | None = None) -> None:
        self._settings = settings
        self._listener = listener or RepositoryListener()
        # Name → version → model, the lowest version first. Inner dicts are replaced, not changed, as other threads read
        # them.
        self._models: dict[str, dict[int, Model]] = {}
        self._states = VersionStates()
        self._locks: dict[str, asyncio.Lock] = {}  # one load or unload of a model at a time
        self._draining: dict[asyncio.Task[None], Model] = {}  # unloaded models with requests in flight
        self._threads = ThreadPoolExecutor(
            usable_cpus() + 1, thread_name_prefix="prepare", initializer=yield_to_event_loop
        )
        self._images = DecodePool(usable_cpus() + 1)
        self._loader = ModelLoader(settings, self._listener, threads=self._threads, images=self._images)
        self._release: asyncio.TimerHandle | None = None
        self.ready = False

    # ---- finding models

    def get(self, name: str, version: str = "") -> Model:
        """The model of this name, in this version or in the newest that is served. Raises ModelNotFound or NotReady."""
        served = self._models.get(name, {})
        for model in reversed(served.values()):
            if version in ("", model.version):
                return model
        raise self._missing(name, version)

    def served(self, name: str, version: str = "") -> list[Model]:
        """This version, or all versions that are served, the lowest first. Raises ModelNotFound or NotReady."""
        self.get(name, version)
        return [model for model in self._models[name].values() if version in ("", model.version)]

    @contextmanager
    def use(self, name: str, version: str, *task_classes: type[TaskT]) -> Iterator[tuple[Model, TaskT]]:
        """The model of `for_task` and its task. Unloading the model waits until the end of the block."""
        model = self.for_task(name, version, *task_classes)
        with model.in_flight.track():
            yield model, model.task_as(*task_classes)

    def for_task(self, name: str, version: str, *task_classes: type[object]) -> Model:
        """The model of this name; without a name, the only model that serves one of the tasks.

        Raises WrongTask if it serves none of them, ModelNotFound, NotReady, and InvalidRequest if a name is needed.
        """
        model = self.get(name or self._only(task_classes), version)
        model.task_as(*task_classes)
        return model

    def _only(self, task_classes: tuple[type[object], ...]) -> str:
        able = {model.name for model in self.models() if isinstance(model.task, task_classes)}
        if not able and any(entry.state == LOADING for entry in self._states.all().values()):
            raise NotReady("model: the models are being loaded")
        return only_model(able, names_of(*task_classes))

    def _missing(self, name: str, version: str) -> ModelNotFound | NotReady:
        """The reason why no such model is served."""
        own = [entry for entry in self._states.of(name) if version in ("", entry.version)]
        if any(entry.state == LOADING for entry in own):
            return NotReady(f"model {name} is being loaded")
        if served := self._models.get(name):
            found = f"version{'s' * (len(served) > 1)} {', '.join(map(str, served))}"
            reasons = "".join(f": {entry.reason}" for entry in own if entry.reason)
            reason = hide_directory(reasons, self._settings.artifacts)
            return ModelNotFound(f"model {name}: found {found}, not {version!r}{reason}")
        return ModelNotFound.unknown(name, self._models)

    def models(self) -> list[Model]:
        """All versions that are ready, by name and version. May be called from any thread."""
        return [model for _, served in sorted(self._models.items()) for model in served.values()]

    def names(self) -> list[str]:
        """The name of each model that was loaded, or failed to load, since the server started."""
        return self._states.names()

    def served_versions(self, name: str) -> set[int]:
        return set(self._models.get(name, {}))

    def failures(self) -> list[Entry]:
        """The versions that could not be loaded. May be called from any thread."""
        return self._states.failures()

    def failed_versions(self, name: str) -> set[int]:
        return {int(entry.version) for entry in self.failures() if entry.name == name}

    def index(self) -> list[Entry]:
        """Each version that is in the directory, or that was loaded or failed to load since the server started."""
        entries = {
            (name, number): Entry(name, str(number), UNAVAILABLE, self._why_not(name))
            for name in newest(self._settings.artifacts)
            for number in versions(self._settings.artifacts, name)
        }
        return [entry for _, entry in sorted((entries | dict(self._states.all())).items())]

    def _why_not(self, name: str) -> str:
        """The reason why a version is not served that the repository has not tried to load."""
        if self._models.get(name):
            return f"not loaded; --set {name}.versions={self._settings.of(name).versions} says which ones are"
        return "not loaded"

    # ---- loading and unloading

    async def load_all(self) -> None:
        """Load all models, or those that the settings name. Stops at the first failure.

        If the directory is polled, versions that are not complete yet are left to the first poll.
        """
        found = newest(self._settings.artifacts)
        names = self._settings.models or tuple(found)
        if not names:
            root = self._settings.artifacts
            raise BadArtifact(f"{root}: found no models; `python -m export SOURCE --artifacts {root}` makes one")
        for name in self._settings.overrides:
            if name not in (EVERY_MODEL, *found):
                raise ModelNotFound(f"--set {name}: found no such model, expected one of {', '.join(found)}")
        choose = select_complete if self._settings.poll_artifacts else select
        chosen = {name: choose(self._settings, name) for name in names}
        if not any(chosen.values()):
            raise BadArtifact(f"{self._settings.artifacts}: found no model with a complete version")
        for name, directories in chosen.items():
            for number in directories:
                self._states.note(name, number, LOADING)
        await self._listener.changed(self)
        for name, directories in chosen.items():
            if directories:
                await self._serve(name, choose)
        self.ready = True
        await self._listener.changed(self)

    async def load(self, name: str) -> None:
        """Serve the versions in the directory that the settings choose. If one fails to load, nothing changes.

        A served version that has not changed on disk stays. A version that is no longer chosen is unloaded when all
        others are ready; its requests in flight are answered.
        """
        await self._serve(name, select)

    async def update(self, name: str, directories: Mapping[int, Path], *, keep: Collection[int]) -> None:
        """Serve the versions in these directories, and the served versions of `keep` without a look at their files.

        All others are unloaded as in `load`. If a version fails to load, nothing changes.
        """
        async with self._locks.setdefault(name, asyncio.Lock()):
            kept = {number: model for number, model in self._models.get(name, {}).items() if number in keep}
            await self._replace(name, directories, kept)
        await self._listener.changed(self)

    async def _serve(self, name: str, choose: Callable[[Settings, str], dict[int, Path]]) -> None:
        choose(self._settings, name)  # raises for an unknown name before a lock is made for it
        async with self._locks.setdefault(name, asyncio.Lock()):
            await self._replace(name, choose(self._settings, name), {})
        await self._listener.changed(self)

    async def _replace(self, name: str, directories: Mapping[int, Path], kept: Mapping[int, Model]) -> None:
        """Serve `kept` and the versions in the directories instead of those that are served now."""
        old, new = self._models.get(name, {}), dict(kept)
        fresh, number = directories.keys() - old.keys(), 0
        for number in directories:
            self._states.note(name, number, LOADING if number in fresh else READY)
        try:
            await self._listener.changed(self)
            for number, directory in directories.items():
                new[number] = await self._loader.load(directory, old.get(number))
        except BaseException as error:
            self._note_failure(name, number, error, fresh=fresh)
            self._release_memory_soon()
            self._unload_all(new, keep=old)
            await self._listener.changed(self)
            raise
        if new:
            self._models[name] = dict(sorted(new.items()))
        else:
            self._models.pop(name, None)
        for number in directories:
            self._states.note(name, number, READY)
        self._unload_all(old, keep=new)

    async def unload(self, name: str) -> None:
        """Unload the model when its requests in flight are answered, even if this call is cancelled."""
        if name not in self._locks:
            raise self._missing(name, "")
        self._loader.cut_tuning_short(name)
        async with self._locks[name]:
            self.get(name)
            unloads = self._unload_all(self._models.pop(name), keep={})
        await self._listener.changed(self)
        await asyncio.shield(asyncio.gather(*unloads))

    def abort(self) -> None:
        """End the requests in flight, also those of models that are being unloaded."""
        for model in (*self.models(), *self._draining.values()):
            model.abort()

    async def drain(self) -> None:
        """Answer the requests in flight, then refuse all others."""
        self.ready = False
        self._loader.stop()
        await asyncio.gather(*(model.drain() for model in self.models()), *self._draining)
        if self._release is not None:
            self._release.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._images.close()

    def note_problem(self, name: str, number: int, error: Exception) -> None:
        """Note why a version in the directory is not loaded, or not loaded again."""
        self._states.note_failure(name, number, error, served=number in self._models.get(name, {}))

    def forget(self, name: str, *, found: Collection[int]) -> None:
        """Forget the versions of a model that are neither served nor `found` in the directory."""
        self._states.forget(name, found=found)

    def _note_failure(self, name: str, failed: int, error: BaseException, *, fresh: Collection[int]) -> None:
        """Note why version `failed` could not be loaded, and why no version in `fresh` is served."""
        for number in fresh:
            self._states.note(name, number, UNAVAILABLE, f"version {failed}: {reason_of(error)}")
            self._listener.unloaded(name, str(number))
        self._states.note_failure(name, failed, error, served=failed not in fresh)

    def _unload_all(self, models: Mapping[int, Model], *, keep: Mapping[int, Model]) -> list[asyncio.Task[None]]:
        """Start to unload these models, except those that are also in `keep`."""
        unloads = []
        for number, model in models.items():
            if keep.get(number) is not model:
                self._note_unload(model, UNLOADING)
                unload = asyncio.create_task(self._unload(model))
                self._draining[unload] = model
                unload.add_done_callback(self._draining.pop)
                unload.add_done_callback(self._release_memory_soon)
                unloads.append(unload)
        return unloads

    async def _unload(self, model: Model) -> None:
        await model.drain()
        self._note_unload(model, UNAVAILABLE, "unloaded")
        async with self._locks[model.name]:  # a load in progress may be about to serve the same version again
            if int(model.version) not in self._models.get(model.name, {}):
                self._listener.unloaded(model.name, model.version)

    def _release_memory_soon(self, _: object = None) -> None:
        """Return the memory of an unloaded model to the system, when its threads have ended."""
        loop = asyncio.get_running_loop()
        if self._release is None or self._release.when() < loop.time():
            self._release = loop.call_later(RELEASE_AFTER_S, loop.run_in_executor, None, release_free_memory)

    def _note_unload(self, model: Model, state: str, reason: str = "") -> None:
        """Note the state of an unloaded version, unless it was never served or the same version is served again."""
        if int(model.version) not in self._models.get(model.name, {}):
            self._states.note_unload(model.name, int(model.version), state, reason)
