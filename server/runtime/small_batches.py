"""Small batches of small models run in one thread, on machines with two CPUs.

A run of a millisecond or two gains nothing from a second thread, which has to be woken for operators of some
microseconds each, and takes the CPU that the event loop needs for the next requests and the last answers. Long runs are
faster with two threads. So there are two sessions over the graph, which give the same results. The bundled bert-mini in
int8-dynamic with texts of 8 tokens, against two threads for all runs, on a 2-core EPYC with AVX512-VNNI (26 November
2026): 1.3 to 1.5 times the calls a second from one caller, with two thirds of the CPU time; 1.0 to 1.2 times from 16,
with 0.85; the same from 64, whose batches are larger.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from server.arrays import Array
from server.artifact import Artifact
from server.config.settings import Settings
from server.host.cpus import usable_cpus
from server.runtime.session import Session

CPUS = 2  # with more, the event loop has a CPU of its own
# Of the graph, times the tokens of a batch: some milliseconds in one thread. A byte is a weight in 8 bits or a quarter
# of a weight in fp32, and a product in 8 bits takes a quarter of the time, so that this holds for both.
MOST_BYTES = 500_000_000
PRECISIONS = ("fp32", "int8-dynamic", "int8-weights")
LEAST_TOKENS = 16  # below, a second session is not worth its memory
PIXELS_PER_TOKEN = 4 * 4  # the patches of small models are small
CHANNELS = 3


class SmallBatches(Session):
    """Runs batches whose first input has up to `most` elements in the session `one`, and all others in `many`."""

    def __init__(self, many: Session, one: Session, *, most: int) -> None:
        super().__init__(many.ort, provider=many.provider, precision=many.precision, device=many.device)
        self._many, self._one, self._most = many, one, most
        self._first = self.input_names[0]

    @property
    def parts(self) -> tuple[Session, ...]:
        return self._many, self._one

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        session = self._one if feeds[self._first].size <= self._most else self._many
        return session.run(feeds, outputs)


def with_small_batches(
    opened: Callable[[Settings], Session], artifact: Artifact, settings: Settings, graph_precision: str
) -> Session:
    """The session that `opened` opens with these settings, with a second one beside it where that is faster."""
    session = opened(settings)
    most = (
        _most_elements(session, artifact, artifact.graph_bytes("cpu", graph_precision)) if _is_shared(settings) else 0
    )
    return SmallBatches(session, opened(replace(settings, threads=1)), most=most) if most else session


def _is_shared(settings: Settings) -> bool:
    """Whether two threads of a run would leave no CPU to the event loop."""
    cpus = usable_cpus()
    return cpus == CPUS and (settings.threads or cpus) == CPUS


def _most_elements(session: Session, artifact: Artifact, graph_bytes: int) -> int:
    """The elements of the first input up to which one thread is enough; 0 for models that are not small."""
    manifest, tokens = artifact.manifest, MOST_BYTES // max(1, graph_bytes)
    if session.provider != "cpu" or session.precision not in PRECISIONS or manifest.HasField("cache"):
        return 0
    if tokens < LEAST_TOKENS:
        return 0
    return tokens * CHANNELS * PIXELS_PER_TOKEN if manifest.HasField("image") else tokens
