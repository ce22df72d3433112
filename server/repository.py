"""The models that are served: which versions there are, which of them are ready, and how they come and go."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from server.artifact import newest, read_artifact
from server.cpus import usable_cpus
from server.errors import AffinityError, BadArtifact, InvalidRequest, ModelNotFound, NotReady, WrongTask
from server.model import Model, open_model
from server.observer import Observe, silence
from server.providers import ProviderChoice, choose_provider
from server.settings import EVERY_MODEL, Settings

__all__ = ["Entry", "Model", "Repository"]

LOADING, READY, UNLOADING, UNAVAILABLE = "LOADING", "READY", "UNLOADING", "UNAVAILABLE"  # as Triton calls them

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """What is known of a model, whether it can answer or not."""

    name: str
    version: str
    state: str
    reason: str = ""


class Repository:
    """Opens the newest version of every model; answers which model a request is for."""

    def __init__(self, settings: Settings, observe: Observe = silence) -> None:
        self._settings = settings
        self._observe = observe
        self._models: dict[str, Model] = {}
        self._entries: dict[str, Entry] = {}
        self._locks: dict[str, asyncio.Lock] = {}  # one load or unload of a model at a time
        self._choice: ProviderChoice | None = None
        self._prepare = ThreadPoolExecutor(usable_cpus() + 1, thread_name_prefix="prepare")
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="open")
        self.ready = False

    # ---- which model

    def get(self, name: str, version: str = "") -> Model:
        """The model of that name, in any version or in the one named. ModelNotFound or NotReady."""
        model = self._models.get(name)
        if model is not None and version in ("", model.version):
            return model
        if model is not None:
            raise ModelNotFound(f"model {name}: found version {model.version}, not {version!r}")
        entry = self._entries.get(name)
        if entry is not None and entry.state == LOADING:
            raise NotReady(f"model {name} is being loaded")
        known = ", ".join(sorted(self._models)) or "none"
        raise ModelNotFound(f"model: found {name!r}, expected one of those that are served: {known}")

    def for_task(self, name: str, version: str, task: str) -> Model:
        """The model of that name if it does the task; without a name the only one that does."""
        if not name:
            return self._only(task, version)
        model = self.get(name, version)
        if (found := model.artifact.manifest.task) != task:
            raise WrongTask(f"model {name}: found task {found}, expected {task}")
        return model

    def _only(self, task: str, version: str) -> Model:
        able = sorted(name for name, model in self._models.items() if model.artifact.manifest.task == task)
        if not able:
            raise ModelNotFound(f"model: none of those that are served does {task}")
        if len(able) > 1:
            raise InvalidRequest("model", "nothing", f"one of {', '.join(able)}: several do {task}")
        return self.get(able[0], version)

    def models(self) -> list[Model]:
        """Those that are ready, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def index(self) -> list[Entry]:
        """Every model that was ever loaded or tried, by name."""
        return [self._entries[name] for name in sorted(self._entries)]

    # ---- coming and going

    async def load_all(self) -> None:
        """Load the newest version of every model, or of those that the settings name. The first failure is the end."""
        found = newest(self._settings.artifacts)
        names = self._settings.models or tuple(found)
        if not names:
            root = self._settings.artifacts
            raise BadArtifact(f"{root}: found no models; `python -m export SOURCE --artifacts {root}` makes one")
        for name in self._settings.overrides:
            if name not in (EVERY_MODEL, *found):
                raise ModelNotFound(f"--set {name}: found no such model, expected one of {', '.join(found)}")
        for name in names:
            await self.load(name)
        self.ready = True

    async def load(self, name: str) -> None:
        """Load the newest version; the one that is served goes when the new one is ready, and stays if that fails."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            old = self._models.get(name)
            directory = newest(self._settings.artifacts).get(name)
            if directory is None:
                raise ModelNotFound(f"model {name}: found no such directory in {self._settings.artifacts}")
            if old is None:
                self._entries[name] = Entry(name, directory.name, LOADING)
            try:
                new = await asyncio.get_running_loop().run_in_executor(self._opener, self._open, directory)
                await new.start()
            except BaseException as error:
                if old is None:
                    reason = str(error) if isinstance(error, AffinityError) else "could not be loaded"
                    self._entries[name] = Entry(name, directory.name, UNAVAILABLE, reason)
                raise
            self._models[name] = new
            self._entries[name] = Entry(name, new.version, READY)
            if old is not None:
                await asyncio.sleep(0)  # requests that were given the old one, and have yet to begin, are in by then
                await old.drain()

    async def unload(self, name: str) -> None:
        """Let requests under way finish, and forget the model."""
        async with self._locks.setdefault(name, asyncio.Lock()):
            model = self.get(name)
            del self._models[name]
            self._entries[name] = Entry(name, model.version, UNLOADING)
            await model.drain()
            self._entries[name] = Entry(name, model.version, UNAVAILABLE, "unloaded")

    async def drain(self) -> None:
        """Answer who is in, let in nobody any more."""
        self.ready = False
        await asyncio.gather(*(model.drain() for model in self._models.values()))
        self._opener.shutdown(wait=False, cancel_futures=True)
        self._prepare.shutdown(wait=False, cancel_futures=True)

    def _open(self, directory: Path) -> Model:
        """In the opener's thread."""
        if self._choice is None:
            self._choice = choose_provider(self._settings)
            if self._choice.reason:
                log.warning("running on %s: %s", self._choice.provider, self._choice.reason)
        artifact = read_artifact(directory)
        observer = self._observe(artifact.name, artifact.version)
        return open_model(artifact, self._choice, self._settings, prepare=self._prepare, observer=observer)
