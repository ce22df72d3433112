"""The models that are served: which versions there are, which of them are ready, and how they come and go."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from server.artifact import newest, versions
from server.config.settings import EVERY_MODEL, Settings
from server.errors import AffinityError, BadArtifact, InvalidRequest, ModelNotFound, NotReady, WrongTask
from server.host.cpus import usable_cpus
from server.images.decode_pool import DecodePool
from server.observability.observer import Observe, no_op_observer
from server.repository.loader import ModelLoader
from server.repository.model import Model

__all__ = ["Entry", "Model", "Repository"]

LOADING, READY, UNLOADING, UNAVAILABLE = "LOADING", "READY", "UNLOADING", "UNAVAILABLE"  # as Triton calls them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What is known of one version of a model, whether it can answer or not."""

    name: str
    version: str
    state: str
    reason: str = ""


async def nobody() -> None:
    """Whom to tell that models came or went, if nobody wants to know."""


def no_one(name: str, version: str) -> None:
    """Whom to tell that a version is gone, if nobody wants to know."""


class Repository:
    """Opens the versions of models that the settings choose; answers which model a request is for."""

    def __init__(self, settings: Settings, observe: Observe = no_op_observer) -> None:
        self._settings = settings
        # Name → version → model, the lowest first. What is in here is replaced, never changed: other threads read it.
        self._models: dict[str, dict[int, Model]] = {}
        self._entries: dict[tuple[str, int], Entry] = {}
        self._locks: dict[str, asyncio.Lock] = {}  # one load or unload of a model at a time
        self._leaving: dict[asyncio.Task[None], Model] = {}  # unloaded, and still answering who is in
        self._prepare = ThreadPoolExecutor(usable_cpus() + 1, thread_name_prefix="prepare")
        self._images = DecodePool(usable_cpus() + 1)
        self._loader = ModelLoader(settings, observe, prepare=self._prepare, images=self._images)
        self.ready = False
        self.changed: Callable[[], Awaitable[None]] = nobody  # called when models have come, failed to come, or gone
        self.gone: Callable[[str, str], None] = no_one  # called when a version has answered all who were in

    # ---- which model

    def get(self, name: str, version: str = "") -> Model:
        """The model of that name, in the version named or in the newest that is served. ModelNotFound or NotReady."""
        served = self._models.get(name, {})
        for model in reversed(served.values()):
            if version in ("", model.version):
                return model
        raise self._missing(name, version)

    def served(self, name: str, version: str = "") -> list[Model]:
        """The version named, or all that are served, the lowest first. ModelNotFound or NotReady."""
        self.get(name, version)
        return [model for model in self._models[name].values() if version in ("", model.version)]

    def for_task(self, name: str, version: str, *tasks: str) -> Model:
        """The model of that name if it does one of the tasks; without a name the only one that does."""
        model = self.get(name or self._only(tasks), version)
        if (found := model.artifact.manifest.task) not in tasks:
            raise WrongTask(f"model {model.name}: found task {found}, expected {' or '.join(tasks)}")
        return model

    def _only(self, tasks: Sequence[str]) -> str:
        able = sorted({model.name for model in self.models() if model.artifact.manifest.task in tasks})
        if not able:
            raise ModelNotFound(f"model: none of those that are served does {' or '.join(tasks)}")
        if len(able) > 1:
            raise InvalidRequest("model", "nothing", f"one of {', '.join(able)}: several do {' or '.join(tasks)}")
        return able[0]

    def _missing(self, name: str, version: str) -> ModelNotFound | NotReady:
        """Why there is no such model."""
        own = [entry for (of, _), entry in self._entries.items() if of == name and version in ("", entry.version)]
        if any(entry.state == LOADING for entry in own):
            return NotReady(f"model {name} is being loaded")
        if served := self._models.get(name):
            found = f"version{'s' * (len(served) > 1)} {', '.join(map(str, served))}"
            reason = "".join(f": {entry.reason}" for entry in own if entry.reason)
            return ModelNotFound(f"model {name}: found {found}, not {version!r}{reason}")
        known = ", ".join(sorted(self._models)) or "none"
        return ModelNotFound(f"model: found {name!r}, expected one of those that are served: {known}")

    def models(self) -> list[Model]:
        """All versions that are ready, by name and version. May be called from any thread."""
        return [model for _, served in sorted(self._models.items()) for model in served.values()]

    def names(self) -> list[str]:
        """Every model that was ever loaded or tried."""
        return sorted({name for name, _ in self._entries})

    def index(self) -> list[Entry]:
        """Every version of every model that lies in the directory, or that was ever loaded or tried."""
        entries = {
            (name, number): Entry(name, str(number), UNAVAILABLE, self._why_not(name))
            for name in newest(self._settings.artifacts)
            for number in versions(self._settings.artifacts, name)
        }
        return [entry for _, entry in sorted((entries | self._entries).items())]

    def _why_not(self, name: str) -> str:
        """Why a version that was never tried is not served."""
        if self._models.get(name):
            return f"not loaded; --set {name}.versions={self._settings.of(name).versions} says which ones are"
        return "not loaded"

    # ---- coming and going

    async def load_all(self) -> None:
        """Load every model, or those that the settings name. The first failure is the end."""
        found = newest(self._settings.artifacts)
        names = self._settings.models or tuple(found)
        if not names:
            root = self._settings.artifacts
            raise BadArtifact(f"{root}: found no models; `python -m export SOURCE --artifacts {root}` makes one")
        for name in self._settings.overrides:
            if name not in (EVERY_MODEL, *found):
                raise ModelNotFound(f"--set {name}: found no such model, expected one of {', '.join(found)}")
        for name in names:
            for number in self._chosen(name):
                self._note(name, number, LOADING)
        await self.changed()
        for name in names:
            await self.load(name)
        self.ready = True
        await self.changed()

    async def load(self, name: str) -> None:
        """Serve the versions that the settings choose among those that are there now: all of them, or nothing changes.

        What is served already, and has not changed on disk, stays; what is not chosen any more goes when all others are
        ready, and answers who is in.
        """
        self._chosen(name)  # a name that somebody made up takes no lock
        async with self._locks.setdefault(name, asyncio.Lock()):
            old, chosen = self._models.get(name, {}), self._chosen(name)
            for number in chosen.keys() - old.keys():
                self._note(name, number, LOADING)
            new: dict[int, Model] = {}
            try:
                await self.changed()
                for number, directory in chosen.items():
                    new[number] = await self._loader.open(directory, old.get(number))
            except BaseException as error:
                self._abort(name, number, error, waiting=chosen.keys() - old.keys())
                self._let_go(new, but=old)
                await self.changed()
                raise
            self._models[name] = new
            for number in new:
                self._note(name, number, READY)
            self._let_go(old, but=new)
        await self.changed()

    async def unload(self, name: str) -> None:
        """Forget the model, and let requests under way finish. They do, even if whoever waits for this is cancelled."""
        if name not in self._locks:
            raise self._missing(name, "")
        async with self._locks[name]:
            self.get(name)
            leaving = self._let_go(self._models.pop(name), but={})
        await self.changed()
        await asyncio.shield(asyncio.gather(*leaving))

    def abort(self) -> None:
        """End what is under way, of models that are leaving, too."""
        for model in (*self.models(), *self._leaving.values()):
            model.abort()

    async def drain(self) -> None:
        """Answer who is in, let in nobody any more."""
        self.ready = False
        self._loader.stop()
        await asyncio.gather(*(model.drain() for model in self.models()), *self._leaving)
        self._prepare.shutdown(wait=False, cancel_futures=True)
        self._images.end()

    def _chosen(self, name: str) -> dict[int, Path]:
        """The versions to serve → where they lie. ModelNotFound if there are none, or not all that are named."""
        root, wanted = self._settings.artifacts, self._settings.of(name).versions
        found = versions(root, name) if name in newest(root) else {}
        if not found:
            raise ModelNotFound(f"model {name}: found no such directory in {root}")
        if missing := set(wanted.named) - found.keys():
            raise ModelNotFound(
                f"model {name}: found versions {', '.join(map(str, found))} in {root}, expected also "
                f"{', '.join(map(str, sorted(missing)))}: --set {name}.versions={wanted}"
            )
        return {number: found[number] for number in wanted.choose(found)}

    def _abort(self, name: str, failed: int, error: BaseException, *, waiting: set[int]) -> None:
        """Note why those that were to come do not: one of them failed."""
        reason = str(error) if isinstance(error, AffinityError) else "could not be loaded"
        for number in waiting:
            self._note(name, number, UNAVAILABLE, reason if number == failed else f"version {failed}: {reason}")
            self.gone(name, str(number))

    def _let_go(self, models: Mapping[int, Model], *, but: Mapping[int, Model]) -> list[asyncio.Task[None]]:
        """Let these answer who is in, and forget them, but for those that are also among the others."""
        leaving = []
        for number, model in models.items():
            if but.get(number) is not model:
                self._note_gone(model, UNLOADING)
                leaving.append(asyncio.create_task(self._leave(model)))
                self._leaving[leaving[-1]] = model
                leaving[-1].add_done_callback(self._leaving.pop)
        return leaving

    async def _leave(self, model: Model) -> None:
        await asyncio.sleep(0)  # requests that were given it, and have yet to begin, are in by then
        await model.drain()
        self._note_gone(model, UNAVAILABLE, "unloaded")
        async with self._locks[model.name]:  # if one of that number is about to come, it is there afterwards
            if int(model.version) not in self._models.get(model.name, {}):
                self.gone(model.name, model.version)

    def _note_gone(self, model: Model, state: str, reason: str = "") -> None:
        """Note it of a version that left, unless it was never served, or another one of that number has come."""
        number = int(model.version)
        served = self._entries[model.name, number].state in (READY, UNLOADING)
        if served and number not in self._models.get(model.name, {}):
            self._note(model.name, number, state, reason)

    def _note(self, name: str, number: int, state: str, reason: str = "") -> None:
        self._entries[name, number] = Entry(name, str(number), state, reason)
