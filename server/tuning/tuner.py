"""Opens the sessions of a model in the way that is fastest here: by a choice that was kept, or by measuring."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.artifact import Artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import ModelSettings, Settings
from server.errors import BadArtifact
from server.host.cpus import usable_cpus
from server.host.processor import is_overloaded, physical_cores, read_processor
from server.runtime.open import OPENVINO_PRECISIONS
from server.runtime.providers import ProviderChoice, cpu_has_bf16
from server.runtime.sessions import CheckedSession, open_sessions
from server.tuning.cache import ChoiceCache, Key
from server.tuning.candidates import Candidate, Choice, Machine, Way, is_possible, ways
from server.tuning.comparison import CANNOT_RUN, Comparison, check_candidate, open_candidate
from server.tuning.key import key_of
from server.tuning.measure import TimeLimit
from server.tuning.stages import Best, find_best

MAX_SECONDS = 10.0  # of measuring, for a model
MEASURED, KEPT = "measured", "cache"  # where a choice is from

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """The choice that a model runs with. `source` is MEASURED or KEPT."""

    choice: Choice
    source: str


@dataclass(frozen=True)
class Opened:
    """The sessions of a model, and its settings with the sizes that were chosen. `tuning` is None if it is off."""

    sessions: Sequence[CheckedSession]
    settings: ModelSettings
    tuning: Tuning | None = None

    @property
    def is_default(self) -> bool:
        """Whether the model runs as without tuning."""
        return self.tuning is None or self.tuning.choice.is_default


class Tuner:
    """Opens models for one loader, in its thread; `cut_short` may be called from any other."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._cache = settings, ChoiceCache(settings.cache)
        cpus = usable_cpus()
        self._machine = Machine(cpus=cpus, cores=min(cpus, physical_cores()), saturates=read_processor().saturates)
        self._limits: dict[str, TimeLimit] = {}  # of the models that are being measured

    def open(
        self, artifact: Artifact, choice: ProviderChoice, alternatives: Sequence[ProviderChoice], *, stop: StopSignal
    ) -> Opened:
        """Open the sessions of a model on the provider of `choice`, or on an alternative that is faster.

        Raises what `open_sessions` raises for `choice`.
        """
        if self._settings.tune == "off" or choice.provider == "cuda":
            return self.open_default(artifact, choice, stop=stop)
        providers = [each.provider for each in (choice, *alternatives)]
        key = key_of(artifact, self._settings, self._machine, providers)
        if self._settings.tune == "auto" and (kept := self._cache.read(artifact, key)) is not None:
            if not kept.complete and not is_overloaded():
                log.info("%s: measured again, because other work prevented a part of the measurement", artifact.name)
            elif (opened := self._open_kept(artifact, kept, providers)) is not None:
                return opened
        return self._open_measured(artifact, choice, providers, key, stop)

    def open_default(self, artifact: Artifact, choice: ProviderChoice, *, stop: StopSignal) -> Opened:
        """Open the sessions as without tuning. Raises what `open_sessions` raises."""
        settings = self._settings.of(artifact.name)
        _check_precision(artifact, choice.target, settings)
        sessions = open_sessions(artifact, choice, self._settings, graph_precision=settings.precision, stop=stop)
        return Opened(sessions, settings)

    def cut_short(self, name: str) -> None:
        """End the measurement of a model, if there is one: the model runs with the best choice so far."""
        if (limit := self._limits.get(name)) is not None:
            limit.end()

    def _open_kept(self, artifact: Artifact, kept: Choice, providers: Sequence[str]) -> Opened | None:
        """Open the session of a choice that was kept; None if it does not run, or not correctly."""
        try:
            if not is_possible(kept, self._ways(artifact, providers), self._machine, threads=self._settings.threads):
                raise BadArtifact(f"{kept.candidate} is not possible here")
            session = check_candidate(open_candidate(artifact, kept.candidate, self._settings), artifact)
        except CANNOT_RUN as error:
            log.warning("%s: the kept choice is ignored, the model is measured again: %s", artifact.name, error)
            return None
        log.info("%s version %s: tuned: %s (from the cache)", artifact.name, artifact.version, kept)
        return self._opened(artifact, session, Tuning(kept, KEPT))

    def _open_measured(
        self, artifact: Artifact, choice: ProviderChoice, providers: Sequence[str], key: Key, stop: StopSignal
    ) -> Opened:
        """Open the default, measure all else, and keep the choice unless the measurement was cut short."""
        limit = self._limits[artifact.name] = TimeLimit(MAX_SECONDS)
        set_threads = not self._settings.threads and self._machine.cpus > 1
        try:
            (session,) = self.open_default(artifact, choice, stop=stop).sessions
            default = self._candidate(artifact, session, choice)
            limit.restart()
            comparison = Comparison(artifact, self._settings, (default, session), limit=limit, stop=stop)
            del session  # the comparison closes it when another one is better
            overloaded = set_threads and _is_overloaded(artifact.name)
            best = find_best(
                comparison,
                artifact,
                default,
                self._ways(artifact, providers),
                settings=self._settings.of(artifact.name),
                machine=self._machine,
                set_threads=set_threads and not overloaded,
            )
        finally:
            del self._limits[artifact.name]
        _log_measured(artifact, best, limit)
        measured = replace(best.choice, complete=best.choice.complete and not overloaded)
        if not limit.ended:
            self._cache.write(artifact, key, measured)
        return self._opened(artifact, best.session, Tuning(measured, MEASURED))

    def _ways(self, artifact: Artifact, providers: Sequence[str]) -> list[Way]:
        """The ways to run a model on these providers, with all of its graphs or with that of the settings."""
        precision = self._settings.of(artifact.name).precision
        return ways(
            providers,
            [graph.precision for graph in artifact.graphs("cpu") if precision in ("", graph.precision)],
            openvino=OPENVINO_PRECISIONS,
            bf16=cpu_has_bf16() and not precision,
            has_cache=artifact.manifest.HasField("cache"),
        )

    def _candidate(self, artifact: Artifact, session: CheckedSession, choice: ProviderChoice) -> Candidate:
        """The default, as it was opened."""
        precision = self._settings.of(artifact.name).precision
        return Candidate(
            provider=choice.provider,
            graph=artifact.graph(choice.target, precision).precision,
            precision=session.session.precision,
            threads=self._settings.threads or self._machine.cpus,
        )

    def _opened(self, artifact: Artifact, session: CheckedSession, tuning: Tuning) -> Opened:
        settings, sizes = self._settings.of(artifact.name), tuning.choice.sizes
        settings = replace(
            settings,
            max_batch_tokens=sizes.max_batch_tokens or settings.max_batch_tokens,
            max_prefill_tokens=sizes.max_prefill_tokens or settings.max_prefill_tokens,
        )
        return Opened([session], settings, tuning)


def _check_precision(artifact: Artifact, target: str, settings: ModelSettings) -> None:
    """Raise BadArtifact if the settings name a precision that no graph for this target has."""
    known = [graph.precision for graph in artifact.graphs(target)]
    if settings.precision and known and settings.precision not in known:
        expected = f"one of {', '.join(known)} (the graphs for {target} in {artifact.directory})"
        raise BadArtifact(f"{artifact.name}.precision: found {settings.precision!r}, expected {expected}")


def _is_overloaded(name: str) -> bool:
    """Whether others use the CPUs now. Then a model seems faster with fewer threads, and is not when it is alone."""
    if overloaded := is_overloaded():
        log.info("%s: the number of threads is not tuned: other work uses the CPUs of this machine", name)
    return overloaded


def _log_measured(artifact: Artifact, best: Best, limit: TimeLimit) -> None:
    log.info(
        "%s version %s: tuned%s: %s (%.1f s, comparisons: %d)",
        artifact.name,
        artifact.version,
        " in part, because it is to be unloaded" if limit.ended else "",
        best.choice,
        limit.spent,
        best.compared,
    )
