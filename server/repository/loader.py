"""Loads versions of models, each on the best provider that can run it. The repository decides which versions."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from server.admission.in_flight import InFlight
from server.artifact import Artifact, read_artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, NotEnoughMemory, ProviderUnavailable, drop_tracebacks
from server.host.priority import yield_to_event_loop
from server.images.decode_pool import DecodePool
from server.repository.listener import RepositoryListener
from server.repository.model import Model
from server.runtime.open import reserved_bytes
from server.runtime.providers import ProviderChoice, Providers, find_providers
from server.runtime.session import RUNTIME_ERRORS, Session
from server.runtime.sessions import CheckedSession
from server.tasks.build import LoadContext
from server.tasks.registry import TASKS
from server.tuning.comparison import CANNOT_RUN
from server.tuning.tuner import Opened, Tuner

Result = TypeVar("Result")
FALLS_BACK = (BadArtifact, ProviderUnavailable, NotEnoughMemory)

log = logging.getLogger(__name__)


class ModelLoader:
    """Loads models in its own thread. All models share `threads` and `images`, the pools that prepare inputs."""

    def __init__(
        self, settings: Settings, listener: RepositoryListener, *, threads: Executor, images: DecodePool
    ) -> None:
        self._settings, self._listener, self._threads, self._images = settings, listener, threads, images
        self._providers: Providers | None = None
        self._load_thread = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=yield_to_event_loop)
        self._stop = StopSignal()
        self._tuner = Tuner(settings)

    async def load(self, directory: Path, old: Model | None) -> Model:
        """Load and start a model. Returns the old one if its manifest has not changed.

        Raises BadArtifact, ProviderUnavailable or NotEnoughMemory if no provider can run the model: with the reason of
        the last provider; the log has those of the others.
        """
        artifact, providers = await self._in_thread(lambda: self._read(directory))
        if old is not None and artifact.manifest == old.artifact.manifest:
            return old
        choice, *others = providers.choices
        while others:
            try:
                return await self._started(artifact, choice, others)
            except FALLS_BACK as error:
                log.warning("%s; running on %s instead", error, others[0].provider)
                choice, *others = others
        return await self._started(artifact, choice, others)

    def stop(self) -> None:
        """Load no more models. A load in progress stops at its next step."""
        self._stop.set()
        self._load_thread.shutdown(wait=False, cancel_futures=True)

    def cut_tuning_short(self, name: str) -> None:
        """End the measurement of a model that is being loaded: it will not serve for long."""
        self._tuner.cut_short(name)

    async def _started(self, artifact: Artifact, choice: ProviderChoice, others: Sequence[ProviderChoice]) -> Model:
        """A model on the provider of a choice, or on another one that was found to be faster."""
        try:
            model = await self._in_thread(lambda: self._build(artifact, choice, others))
            await model.start()
        except asyncio.CancelledError:
            self.cut_tuning_short(artifact.name)
            raise
        except RUNTIME_ERRORS as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BadArtifact(f"{artifact.directory}: does not run on {choice.provider}: {reason}") from error
        return model

    def _read(self, directory: Path) -> tuple[Artifact, Providers]:
        self._stop.check()
        if self._providers is None:
            self._providers = find_providers(self._settings)
            if self._providers.reason:
                log.info("running on %s: %s", self._providers, self._providers.reason)
        return read_artifact(directory), self._providers

    def _build(self, artifact: Artifact, choice: ProviderChoice, others: Sequence[ProviderChoice]) -> Model:
        """Open sessions, check them with the golden inputs, build the task. Blocks.

        Raises BadArtifact, ProviderUnavailable or NotEnoughMemory, NotReady after a stop, and the runtime's own errors.
        """
        self._stop.check()
        opened = self._tuner.open(artifact, choice, others, stop=self._stop)
        try:
            return self._build_task(artifact, opened)
        except CANNOT_RUN as error:
            if opened.is_default:
                raise
            log.warning("%s: running with the defaults instead of the measured choice: %s", artifact.name, error)
            drop_tracebacks(error)
        del opened  # closes its sessions, whose memory the default may need
        return self._build_task(artifact, self._tuner.open_default(artifact, choice, stop=self._stop))

    def _build_task(self, artifact: Artifact, opened: Opened) -> Model:
        worst = max(opened.sessions, key=lambda each: each.parity.error)
        _log_parity(artifact, worst)
        in_flight = InFlight(f"{artifact.name} is being unloaded")
        context = LoadContext(
            artifact=artifact,
            sessions=[each.session for each in opened.sessions],
            settings=opened.settings,
            memory_limit=self._memory_limit(artifact, worst.session),
            threads=self._threads,
            images=self._images,
            observer=self._listener.observer(artifact.name, artifact.version),
            in_flight=in_flight,
            stop=self._stop,
        )
        built = TASKS[artifact.manifest.task].build(context)
        return Model(
            artifact=artifact,
            session=worst.session,
            parity=worst.parity,
            tuning=opened.tuning,
            task=built.task,
            raw=built.raw,
            counter=built.counter,
            backend=built.backend,
            preprocessing_parity=built.preprocessing_parity,
            threads=self._threads,
            in_flight=in_flight,
        )

    def _memory_limit(self, artifact: Artifact, session: Session) -> int | None:
        limited = self._settings.gpu_memory_mb and session.provider == "cuda"
        return reserved_bytes(artifact, self._settings) if limited else None

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._load_thread, work)


def _log_parity(artifact: Artifact, checked: CheckedSession) -> None:
    session, parity = checked.session, checked.parity
    log.info(
        "%s version %s: %s on %s in %s, %.2g standard deviations from PyTorch (%s; at most %g)",
        artifact.name,
        artifact.version,
        artifact.manifest.task,
        session.provider,
        session.precision,
        parity.error,
        parity.measure,
        parity.tolerance,
    )
