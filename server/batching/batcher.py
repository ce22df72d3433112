"""Runs what the scheduler chooses: the thin part, with the clock, the threads and the callers.

While one batch runs in the session's thread, the next is planned and collated; its rows still wait, and can be
cancelled or joined. If a larger batch can be made of what waits by the time it could run, that one runs instead.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from server.admission import Call, Gate, Limits
from server.arrays import Array
from server.batching.rows import Outputs, Row, collate, split, wanted
from server.batching.scheduler import NEVER, Budget, Scheduler, Waiting
from server.errors import DeadlineExceeded, InvalidRequest, Overloaded
from server.observer import Observer, Silent, Spent
from server.under_way import UnderWay

OUT_OF_MEMORY = ("out of memory", "failed to allocate memory", "bad_alloc", "bad allocation")

log = logging.getLogger(__name__)


class Runs(Protocol):
    """What the batcher needs of a session."""

    @property
    def input_names(self) -> tuple[str, ...]: ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]: ...


@dataclass(eq=False)
class _Request:
    """The rows of one caller, and the answers that are there so far."""

    rows: Sequence[Row]
    answers: list[Outputs | None]
    missing: int
    done: asyncio.Future[None]
    collate_seconds: float = 0.0  # of all batches that it was in
    run_seconds: float = 0.0
    split_seconds: float = 0.0

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def answer(self, number: int, outputs: Outputs) -> None:
        self.answers[number] = outputs
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False)
class Place:
    """Room in the queue for inputs that are being prepared, until their rows take it over."""

    inputs: int


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows that were chosen to run together, with the feeds of the run."""

    members: list[Waiting]
    rows: list[Row]
    feeds: Outputs | Exception  # what went wrong with collating them
    collate_seconds: float

    @property
    def padded_tokens(self) -> int:
        return len(self.rows) * max(row.tokens for row in self.rows)


@dataclass(frozen=True, eq=False)
class _Ran:
    """What a batch came to: the answers of its rows, in order."""

    answers: list[Outputs]
    run_seconds: float
    split_seconds: float


class Batcher:
    """Answers rows, several callers' together. One for each session; `prepare` is the pool that collates."""

    def __init__(
        self,
        session: Runs,
        *,
        name: str,
        budget: Budget,
        limits: Limits,
        prepare: Executor,
        max_delay_s: float = 0.0,
        observer: Observer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.gate = Gate(name, limits)
        self.under_way = UnderWay(f"{name} is being unloaded")
        self._session = session
        self._scheduler = Scheduler(budget, max_delay_s=max_delay_s)
        self._prepare = prepare
        self._runner = ThreadPoolExecutor(1, thread_name_prefix=f"run-{name}")
        self._observer = observer or Silent()
        self._clock = clock
        self._requests: dict[int, tuple[_Request, int]] = {}  # of each row under way: whose it is, and its number
        self._keys = 0
        self.running_rows = 0
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    # ---- for callers

    @property
    def waiting_rows(self) -> int:
        return self.gate.requests

    @property
    def waiting_tokens(self) -> int:
        return self.gate.tokens

    @contextmanager
    def place(self, inputs: int, *, field: str = "inputs") -> Iterator[Place]:
        """A request under way, with a place for each of its inputs before anything is made of them.

        InvalidRequest and Overloaded as with `run`, which takes the place over: so nothing is prepared in vain.
        """
        with self.under_way.one():
            self._pass_gate(requests=inputs, tokens=0, field=field)
            place = Place(inputs)
            try:
                yield place
            finally:
                self.gate.leave(requests=place.inputs, tokens=0)

    async def run(
        self, rows: Sequence[Row], call: Call, *, field: str = "inputs", place: Place | None = None
    ) -> list[Outputs]:
        """The outputs that each row wants, in the order of the rows.

        Call it while the request is `under_way`, with the `place` of the rows if they have one. InvalidRequest if they
        can never fit, Overloaded if they do not now, DeadlineExceeded.
        """
        if not rows:
            return []
        now = self._clock()
        call.check_deadline(now)
        self._enter(rows, field, place or Place(0))
        request = _Request(rows, [None] * len(rows), len(rows), asyncio.get_running_loop().create_future())
        keys = [self._wait(request, number, call, now) for number in range(len(rows))]
        self._arrived.set()
        try:
            async with asyncio.timeout(None if call.deadline is None else call.deadline - now):
                await request.done
        except TimeoutError:
            self._drop(keys, "expired")
            raise DeadlineExceeded("the deadline of the request passed before its answer was there") from None
        except asyncio.CancelledError:
            self._drop(keys, "cancelled")
            raise
        except Exception:
            self._drop(keys, "failed")
            raise
        self._tell_answered(request, self._clock() - now)
        return [answer for answer in request.answers if answer is not None]

    async def start(self) -> None:
        self._loop = asyncio.create_task(self._serve(), name=f"batcher-{self.name}")

    async def drain(self) -> None:
        """Let in nobody any more, answer who is in, and end."""
        try:
            self.under_way.close()
            await self.under_way.finished()
        finally:  # also when whoever waits for this has no more patience
            if self._loop is not None:
                self._loop.cancel()
                await asyncio.gather(self._loop, return_exceptions=True)
            self._runner.shutdown(wait=False)

    # ---- the queue

    def _enter(self, rows: Sequence[Row], field: str, place: Place) -> None:
        budget = self._scheduler.budget
        for number, row in enumerate(rows):
            if not budget.fits_alone(tokens=row.tokens, heads=row.heads):
                found = f"{row.tokens} tokens, {row.heads} of them with logits"
                raise InvalidRequest(
                    f"{field}[{number}]", found, f"at most {budget.tokens}, {budget.heads} with logits"
                )
        self._pass_gate(requests=len(rows) - place.inputs, tokens=sum(row.tokens for row in rows), field=field)
        place.inputs = 0

    def _pass_gate(self, *, requests: int, tokens: int, field: str) -> None:
        try:
            self.gate.enter(requests=requests, tokens=tokens, field=field)
        except Overloaded:
            self._observer.refused("overloaded")
            raise

    def _wait(self, request: _Request, number: int, call: Call, now: float) -> int:
        row, key = request.rows[number], self._keys
        self._keys += 1
        self._requests[key] = request, number
        self._scheduler.add(Waiting(key=key, tokens=row.tokens, heads=row.heads, rank=call.rank(now), arrived=now))
        return key

    def _drop(self, keys: Sequence[int], reason: str) -> None:
        """Forget the rows of a caller who is gone. Those that are running run to their end, for nobody."""
        for key in keys:
            if (member := self._scheduler.drop(key)) is not None:
                del self._requests[key]
                self.gate.leave(requests=1, tokens=member.tokens)
                self._observer.dropped(reason)

    def _tell_answered(self, request: _Request, seconds: float) -> None:
        """What was not work was waiting."""
        work = request.collate_seconds + request.run_seconds + request.split_seconds
        spent = Spent(
            queue_seconds=max(0.0, seconds - work),
            collate_seconds=request.collate_seconds,
            run_seconds=request.run_seconds,
            split_seconds=request.split_seconds,
        )
        self._observer.answered(spent)

    # ---- the loop

    async def _serve(self) -> None:
        running: asyncio.Task[None] | None = None
        while True:
            await self._until_due()
            members = self._scheduler.plan()
            batch = await self._collated(members)
            if running is not None:
                await running
            chosen = self._take(members)
            if chosen and chosen != members:
                batch = await self._collated(chosen)
            running = asyncio.create_task(self._run(batch)) if chosen else None

    async def _until_due(self) -> None:
        """Wait until a batch should be taken."""
        while (delay := self._scheduler.due(self._clock())) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if delay == NEVER else delay):
                    await self._arrived.wait()

    def _take(self, planned: list[Waiting]) -> list[Waiting]:
        """Take what was planned out of the queue, or what is better by now. Empty if everybody is gone."""
        better = self._scheduler.plan()
        keep = self._scheduler.all_wait(planned) and _tokens(better) <= _tokens(planned)
        now, members = self._clock(), planned if keep else better
        for member in members:
            self._scheduler.drop(member.key)
            self.gate.leave(requests=1, tokens=member.tokens, waited_s=now - member.arrived)
        return members

    async def _collated(self, members: list[Waiting]) -> _Batch:
        """Collate in the pool. What goes wrong is kept for the run to raise: it is these rows' misfortune only."""
        owners = [self._requests[member.key] for member in members]
        rows = [request.rows[number] for request, number in owners]
        begun = self._clock()
        feeds: Outputs | Exception
        try:
            feeds = await asyncio.get_running_loop().run_in_executor(
                self._prepare, collate, rows, self._session.input_names
            )
        except Exception as error:
            feeds = error
        return _Batch(members, rows, feeds, self._clock() - begun)

    async def _run(self, batch: _Batch) -> None:
        """Run one batch and hand out the answers. Never raises: a failure is told to the callers of this batch."""
        begun = self._clock()
        self.running_rows = len(batch.rows)
        try:
            ran = await asyncio.get_running_loop().run_in_executor(self._runner, self._compute, batch)
        except Exception as error:
            if _out_of_memory(error) and len(batch.rows) > 1:
                await self._run_halves(batch)
            else:
                self._fail(batch, error)
            return
        finally:
            self.running_rows = 0
        self._observer.batch(
            rows=len(batch.rows),
            tokens=_tokens(batch.members),
            padded_tokens=batch.padded_tokens,
            queue_seconds=[begun - member.arrived for member in batch.members],
            collate_seconds=batch.collate_seconds,
            run_seconds=ran.run_seconds,
            split_seconds=ran.split_seconds,
        )
        owners = [self._requests.pop(member.key) for member in batch.members]
        for request in {request for request, _ in owners}:
            request.collate_seconds += batch.collate_seconds
            request.run_seconds += ran.run_seconds
            request.split_seconds += ran.split_seconds
        for (request, number), answer in zip(owners, ran.answers, strict=True):
            request.answer(number, answer)

    def _compute(self, batch: _Batch) -> _Ran:
        """In the session's thread."""
        if isinstance(batch.feeds, Exception):
            raise batch.feeds
        begun = self._clock()
        outputs = self._session.run(batch.feeds, wanted(batch.rows))
        ran = self._clock()
        answers = split(outputs, batch.rows)
        return _Ran(answers, ran - begun, self._clock() - ran)

    async def _run_halves(self, batch: _Batch) -> None:
        """There was no memory for the whole."""
        log.warning("%s: no memory for %d rows together; trying in halves", self.name, len(batch.rows))
        middle = len(batch.rows) // 2
        for half in (batch.members[:middle], batch.members[middle:]):
            await self._run(await self._collated(half))

    def _fail(self, batch: _Batch, error: Exception) -> None:
        log.error("%s: a run of %d rows failed", self.name, len(batch.rows), exc_info=error)
        self._observer.failed(len(batch.rows))
        for member in batch.members:
            request, _ = self._requests.pop(member.key)
            failure = RuntimeError(f"{self.name}: a run of {len(batch.rows)} rows failed")
            failure.__cause__ = error
            request.fail(failure)


def _tokens(members: Sequence[Waiting]) -> int:
    return sum(member.tokens for member in members)


def _out_of_memory(error: Exception) -> bool:
    """The runtime has no type for it: it is known by its words."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)
