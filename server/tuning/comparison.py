"""Compares candidates by running them. At most two sessions are open: the best one so far, and a challenger."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from server.artifact import Artifact
from server.concurrency.stop_signal import StopSignal
from server.config.settings import Settings
from server.errors import BadArtifact, NotEnoughMemory, ProviderUnavailable
from server.generation.golden_check import check_decoding
from server.host.memory import available_bytes, release_free_memory
from server.runtime.providers import ProviderChoice
from server.runtime.session import RUNTIME_ERRORS, Session
from server.runtime.sessions import CheckedSession, check_session, open_unchecked
from server.tuning.candidates import Candidate
from server.tuning.measure import MIN_ROUNDS, TimeLimit, Workload, compare
from server.tuning.search import Measurement, replaces, speedup
from server.tuning.workloads import batch, batch_rows, prefill, row_seconds, warm_seconds, workloads

# Bytes to open a session, for each byte of its graph: the weights, the same in the order of the kernels, and the file.
BYTES_PER_GRAPH_BYTE = 3
SMALL_MODEL_S = 0.002  # at most, for a short input
MAX_SIZES_S = 4.0  # to compare two sizes of batches
MAX_CHUNK_S = 0.05  # a chunk of a prompt delays the next tokens of all other texts by so long
CANNOT_RUN: tuple[type[Exception], ...] = (BadArtifact, ProviderUnavailable, NotEnoughMemory, *RUNTIME_ERRORS)

log = logging.getLogger(__name__)


def open_candidate(artifact: Artifact, candidate: Candidate, settings: Settings) -> Session:
    """Open the session of a candidate. Raises one of `CANNOT_RUN` if it does not run."""
    return open_unchecked(
        artifact,
        ProviderChoice(candidate.provider),
        replace(settings, threads=candidate.threads),
        graph_precision=candidate.graph,
        precision=candidate.precision,
        config=candidate.options,
    )


def check_candidate(session: Session, artifact: Artifact) -> CheckedSession:
    """Run the golden inputs in the session of a candidate. Raises one of `CANNOT_RUN` if it is out of tolerance."""
    checked = check_session(session, artifact)
    if artifact.manifest.HasField("cache"):
        check_decoding(session, artifact)
    return checked


class Comparison:
    """The measurements of one model, starting with the session of the default.

    It is `complete` unless memory was missing for the session of a candidate.
    """

    def __init__(
        self,
        artifact: Artifact,
        settings: Settings,
        default: tuple[Candidate, CheckedSession],
        *,
        limit: TimeLimit,
        stop: StopSignal,
    ) -> None:
        self._artifact, self._settings, self._limit, self._stop = artifact, settings, limit, stop
        self._sessions = {default[0]: default[1].session}
        self._checked = {default[0]: default[1]}
        self._work: dict[Candidate, list[Workload]] = {}
        self._rows = 0  # in the batch that is measured, the same for all candidates
        self.complete = True

    def candidates(self, best: Candidate, challenger: Candidate) -> Sequence[Measurement]:
        """Compare two candidates. Returns nothing if the challenger cannot be measured: the log says why not."""
        self._stop.check()
        self._close_all_but(best)
        if self._limit.left <= 0 or not self._has_memory(challenger):
            return []
        try:
            session = open_candidate(self._artifact, challenger, self._settings)
            self._sessions[challenger] = session
            measured = compare(self._workloads(best), self._workloads(challenger), limit=self._limit, stop=self._stop)
            if measured and replaces(measured):
                self._checked[challenger] = check_candidate(session, self._artifact)
        except CANNOT_RUN as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            log.info("%s: not considered: %s: %s", self._artifact.name, challenger, reason)
            return []
        self._log(str(challenger), str(best), measured)
        return measured

    def batch_tokens(
        self, best: Candidate, tokens: int, challenger: int, *, length: int, items: int
    ) -> Sequence[Measurement]:
        """Compare two numbers of tokens in a batch, of inputs of `length` tokens, with at most `items` inputs.

        Returns nothing if the batches take long: then little depends on their size.
        """
        session = self._session(best)
        rows, more = (max(1, min(items, size // length)) for size in (tokens, challenger))
        seconds = (MIN_ROUNDS + 1) * (rows + more) * row_seconds(session, self._artifact)
        if rows == more or seconds > min(MAX_SIZES_S, self._limit.left):
            return []
        return self._sizes(best, *(batch(session, self._artifact, count, length) for count in (rows, more)))

    def chunk_tokens(self, best: Candidate, tokens: int, challenger: int, *, past: int) -> Sequence[Measurement]:
        """Compare two numbers of tokens in a chunk of a prompt. Returns nothing if a chunk would take too long."""
        ours, theirs = (prefill(self._session(best), self._artifact, count, past) for count in (tokens, challenger))
        return [] if warm_seconds(theirs) > MAX_CHUNK_S else self._sizes(best, ours, theirs)

    def is_small(self, best: Candidate) -> bool:
        """Whether the operators of the model are so short that waking threads matters."""
        return warm_seconds(self._workloads(best)[0]) < SMALL_MODEL_S

    def take(self, best: Candidate) -> CheckedSession:
        """The session of the best candidate; all others are closed."""
        self._close_all_but(best)
        return self._checked.pop(best)

    def _sizes(self, best: Candidate, ours: Workload, theirs: Workload) -> Sequence[Measurement]:
        """Compare two sizes of runs in one session."""
        self._stop.check()
        if self._limit.left <= 0:
            return []
        measured = compare([ours], [theirs], limit=self._limit, stop=self._stop)
        self._log(theirs.name, ours.name, measured)
        return measured

    def _session(self, candidate: Candidate) -> Session:
        return self._sessions[candidate]

    def _workloads(self, candidate: Candidate) -> list[Workload]:
        if candidate not in self._work:
            session = self._session(candidate)
            self._rows = self._rows or batch_rows(session, self._artifact)
            self._work[candidate] = workloads(session, self._artifact, rows=self._rows)
        return self._work[candidate]

    def _close_all_but(self, best: Candidate) -> None:
        closed = [each for each in self._sessions if each != best]
        for each in closed:
            del self._sessions[each]
            self._checked.pop(each, None)
            self._work.pop(each, None)
        if closed:
            release_free_memory()

    def _has_memory(self, candidate: Candidate) -> bool:
        target = ProviderChoice(candidate.provider).target
        needed = BYTES_PER_GRAPH_BYTE * self._artifact.graph_bytes(target, candidate.graph)
        if needed <= (available := available_bytes()):
            return True
        self.complete = False
        log.info(
            "%s: not considered: %s: found %d MB of memory, expected %d MB for a second session",
            self._artifact.name,
            candidate,
            available >> 20,
            needed >> 20,
        )
        return False

    def _log(self, challenger: str, best: str, measured: Sequence[Measurement]) -> None:
        if not measured:
            log.debug("%s: no time to measure %s", self._artifact.name, challenger)
            return
        log.debug(
            "%s: %s is %.2f times as fast as %s (%s): %s",
            self._artifact.name,
            challenger,
            speedup(measured),
            best,
            ", ".join(f"{each.workload} {each.speedup:.2f}" for each in measured),
            "taken" if replaces(measured) else "not taken",
        )
