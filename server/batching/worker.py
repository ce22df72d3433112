"""Collates and runs batches: a session and the one thread that uses it. There is one worker for each device."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from server.arrays import Array
from server.batching.collate import Item, Outputs, collate, split, wanted
from server.batching.scheduler import tokens_of
from server.batching.shape_buckets import Shapes
from server.batching.waiting import WaitingItem
from server.host.priority import yield_to_event_loop
from server.observability.observer import TimeSpent

# The last is the message of a memory arena with a limit: "Available memory of N is smaller than requested bytes of M".
OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "is smaller than requested bytes",
)


class SessionProtocol(Protocol):
    """The part of a session that the batcher uses."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]: ...


@dataclass(frozen=True, eq=False)
class Collated:
    """The feeds of a batch, and the time it took to build them."""

    feeds: Outputs
    seconds: float


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """The items of one batch."""

    members: list[WaitingItem]
    items: list[Item]
    collated: Collated | None  # if collated ahead of time
    padded_tokens: int

    @property
    def tokens(self) -> int:
        return tokens_of(self.members)


@dataclass(frozen=True, eq=False)
class BatchResult:
    """The outputs of a batch by item, in order, and the time it took."""

    answers: list[Outputs]
    spent: TimeSpent


class BatchWorker:
    """Runs one batch at a time."""

    def __init__(self, session: SessionProtocol, name: str, shapes: Shapes, clock: Callable[[], float]) -> None:
        self.busy_since: float | None = None  # since its last batch, if others waited then
        self._session = session
        self._shapes = shapes
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"run-{name}", initializer=yield_to_event_loop)

    async def run(self, batch: Batch) -> BatchResult:
        """Run a batch in the thread of the worker. Raises the errors of collating and running."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)

    def collate(self, items: Sequence[Item]) -> Collated:
        """Build the feeds. May run in any thread."""
        begun = self._clock()
        return Collated(collate(items, self._session.input_names, self._shapes), self._clock() - begun)

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _compute(self, batch: Batch) -> BatchResult:
        """Runs in the thread of the worker."""
        collated = batch.collated or self.collate(batch.items)
        begun = self._clock()
        outputs = self._session.run(collated.feeds, wanted(batch.items))
        ran = self._clock()
        answers = split(outputs, batch.items)
        split_seconds = self._clock() - ran
        return BatchResult(
            answers, TimeSpent(collate_seconds=collated.seconds, run_seconds=ran - begun, split_seconds=split_seconds)
        )


def out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out. The runtime has no type for it, so its text decides."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)
