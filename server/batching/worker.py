"""Where batches are collated and run: a session and the one thread that uses it. There is a lane for each device."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from server.arrays import Array
from server.batching.collate import Outputs, Row, collate, split, wanted
from server.batching.scheduler import Waiting, tokens_of
from server.batching.shape_buckets import Shapes
from server.observability.observer import Spent

# The last is what an arena with a limit says: "Available memory of N is smaller than requested bytes of M".
OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "is smaller than requested bytes",
)


class SessionProtocol(Protocol):
    """What the batcher needs of a session."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]: ...


@dataclass(frozen=True, eq=False)
class Collated:
    """The feeds of a run."""

    feeds: Outputs
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """Rows that were chosen to run together."""

    members: list[Waiting]
    rows: list[Row]
    collated: Collated | None  # if it was done ahead
    padded_tokens: int

    @property
    def tokens(self) -> int:
        return tokens_of(self.members)


@dataclass(frozen=True, eq=False)
class BatchResult:
    """What a batch came to: the answers of its rows, in order, with what each wants."""

    answers: list[Outputs]
    spent: Spent


class BatchWorker:
    """Runs one batch at a time."""

    def __init__(self, session: SessionProtocol, name: str, shapes: Shapes, clock: Callable[[], float]) -> None:
        self._session = session
        self._shapes = shapes
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"run-{name}")

    async def run(self, batch: Batch) -> BatchResult:
        """Raises what collating the rows or running them raised."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)

    def collate(self, rows: Sequence[Row]) -> Collated:
        """In any thread."""
        begun = self._clock()
        return Collated(collate(rows, self._session.input_names, self._shapes), self._clock() - begun)

    def end(self) -> None:
        self._thread.shutdown(wait=False)

    def _compute(self, batch: Batch) -> BatchResult:
        """In the session's thread."""
        collated = batch.collated or self.collate(batch.rows)
        begun = self._clock()
        outputs = self._session.run(collated.feeds, wanted(batch.rows))
        ran = self._clock()
        answers = split(outputs, batch.rows)
        split_seconds = self._clock() - ran
        return BatchResult(
            answers, Spent(collate_seconds=collated.seconds, run_seconds=ran - begun, split_seconds=split_seconds)
        )


def out_of_memory(error: Exception) -> bool:
    """The runtime has no type for it: it is known by its words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)
