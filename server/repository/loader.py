"""Loads versions of models, each on the best provider that can run it. The repository decides which versions."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from server.artifact import Artifact, read_artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, NotEnoughMemory, ProviderUnavailable
from server.images.decode_pool import DecodePool
from server.observability.observer import Observe
from server.repository.model import Model, load_model
from server.runtime.providers import ProviderChoice, Providers, find_providers

Result = TypeVar("Result")
FALLS_BACK = (BadArtifact, ProviderUnavailable, NotEnoughMemory)
# The runtime's errors have no common base.
RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    MemoryError,
    *(kind for kind in vars(runtime).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)

log = logging.getLogger(__name__)


class ModelLoader:
    """Opens in a thread of its own. `prepare` and `images` are the pools of the models for work before they run."""

    def __init__(self, settings: Settings, observe: Observe, *, prepare: Executor, images: DecodePool) -> None:
        self._settings, self._observe, self._prepare, self._images = settings, observe, prepare, images
        self._providers: Providers | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="open")
        self._stop = StopSignal()

    async def open(self, directory: Path, old: Model | None) -> Model:
        """A model that has started; the old one if nothing has changed.

        BadArtifact, ProviderUnavailable or NotEnoughMemory says why the last of the providers cannot run it. Why the
        others could not is in the log.
        """
        artifact, providers = await self._in_thread(lambda: self._read(directory))
        if old is not None and artifact.manifest == old.artifact.manifest:
            return old
        *better, last = providers.choices
        for choice, instead in zip(better, providers.choices[1:], strict=True):
            try:
                return await self._started(artifact, choice)
            except FALLS_BACK as error:
                log.warning("%s; running on %s instead", error, instead.provider)
        return await self._started(artifact, last)

    def stop(self) -> None:
        """Open nothing any more. What is being opened ends at its next step."""
        self._stop.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _started(self, artifact: Artifact, choice: ProviderChoice) -> Model:
        observer = self._observe(artifact.name, artifact.version)
        try:
            model = await self._in_thread(
                lambda: load_model(
                    artifact,
                    choice,
                    self._settings,
                    prepare=self._prepare,
                    images=self._images,
                    observer=observer,
                    stop=self._stop,
                )
            )
            await model.start()
        except RUNTIME_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadArtifact(f"{artifact.directory}: does not run on {choice.provider}: {reason}") from error
        return model

    def _read(self, directory: Path) -> tuple[Artifact, Providers]:
        self._stop.check()
        if self._providers is None:
            self._providers = find_providers(self._settings)
            if self._providers.reason:
                log.warning("running on %s: %s", self._providers, self._providers.reason)
        return read_artifact(directory), self._providers

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
