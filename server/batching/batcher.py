"""Runs what the scheduler chooses: the thin part, with the clock, the threads and the callers.

There is one queue, and a lane for each session: whichever is free takes the next batch, and collates it in its own
thread. While all of them run, the next batch is planned and collated ahead; its rows still wait, and can be cancelled
or joined. If by the time it could run another's turn has come, or a larger batch can be made, that one runs instead.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from server.admission.deadline import within_deadline
from server.admission.in_flight import InFlight
from server.admission.queue import Limits, RequestContext
from server.batching.collate import Outputs, Row
from server.batching.queue import Queue, Request, Reservation
from server.batching.scheduler import NEVER, Budget, Scheduler, Waiting
from server.batching.worker import Batch, BatchWorker, Collated, SessionProtocol, out_of_memory
from server.errors import NotReady
from server.observability.observer import NoOpObserver, Observer

log = logging.getLogger(__name__)


class Batcher:
    """Answers rows, several callers' together."""

    def __init__(
        self,
        sessions: Sequence[SessionProtocol],
        *,
        name: str,
        budget: Budget,
        limits: Limits,
        max_delay_s: float = 0.0,
        observer: Observer | None = None,
        in_flight: InFlight | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.slots = 0
        self.in_flight = in_flight or InFlight(f"{name} is being unloaded")
        self._shapes = budget.shapes
        self._observer = observer or NoOpObserver()
        self._scheduler = Scheduler(budget, max_delay_s=max_delay_s)
        self._queue = Queue(name, self._scheduler, limits, self._observer)
        self.gate = self._queue.gate
        self._lanes = [
            BatchWorker(session, f"{name}-{number}", self._shapes, clock) for number, session in enumerate(sessions)
        ]
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix=f"collate-{name}")
        self._free: asyncio.Queue[BatchWorker] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    # ---- for callers

    @property
    def waiting_rows(self) -> int:
        return self.gate.requests

    @property
    def waiting_tokens(self) -> int:
        return self.gate.tokens

    @property
    def running_rows(self) -> int:
        return self._queue.running

    @asynccontextmanager
    async def place(self, inputs: int, call: RequestContext, *, field: str = "inputs") -> AsyncIterator[Reservation]:
        """A request under way, with a place for each of its inputs before anything is made of them.

        InvalidRequest if so many can never fit, Overloaded if they do not now: so nothing is prepared in vain.
        DeadlineExceeded wherever the request is when its time is up.
        """
        with self.in_flight.track():
            now = self._clock()
            call.check_deadline(now)
            self._queue.admit(requests=inputs, tokens=0, field=field)
            async with within_deadline(call, now) as timeout:
                place = Reservation(inputs, call, field, timeout)
                try:
                    yield place
                finally:
                    self.gate.leave(requests=place.inputs, tokens=0)

    async def run(self, rows: Sequence[Row], place: Reservation) -> list[Outputs]:
        """The outputs that each row wants, in the order of the rows, which take the place over.

        InvalidRequest if their tokens can never fit, Overloaded if they do not now.
        """
        if not rows:
            return []
        now = self._clock()
        request = Request(rows, [None] * len(rows), len(rows), asyncio.get_running_loop().create_future())
        self._enter(rows, place)
        keys = self._queue.wait(request, place.call, now)
        self._arrived.set()
        try:
            await request.done
        except asyncio.CancelledError:
            self._queue.drop(keys, place.why_gone(self._clock()))
            raise
        except Exception:
            self._queue.drop(keys, "failed")
            raise
        self._observer.answered(request.spent(self._clock() - now))
        return [answer for answer in request.answers if answer is not None]

    def _enter(self, rows: Sequence[Row], place: Reservation) -> None:
        assert place.inputs == len(rows), f"a place for {place.inputs} inputs, and {len(rows)} rows; this is a bug"
        self._queue.check(rows, place.field)
        self._queue.admit(requests=0, tokens=sum(row.tokens for row in rows), field=place.field)
        place.inputs = 0

    async def start(self) -> None:
        for lane in self._lanes:
            self._free.put_nowait(lane)
        self._loop = asyncio.create_task(self._serve(), name=f"batcher-{self.name}")

    async def drain(self) -> None:
        """Let in nobody any more, answer who is in, and end."""
        try:
            self.in_flight.close()
            await self.in_flight.wait_idle()
            if self._running:
                await asyncio.wait(self._running)  # for callers who have left
        finally:  # also when whoever waits for this has no more patience
            if self._loop is not None:
                self._loop.cancel()
                await asyncio.gather(self._loop, return_exceptions=True)
            for lane in self._lanes:
                lane.end()
            self._ahead.shutdown(wait=False)

    def abort(self) -> None:
        """Tell everybody who waits that there will be no answer."""
        self._queue.abort(NotReady(f"{self.name} is being unloaded"))

    # ---- the loop

    async def _serve(self) -> None:
        while True:
            await self._until_due()
            planned, collated = await self._planned() if self._free.empty() else ([], None)
            lane = await self._free.get()
            chosen = self._queue.take(planned, self._clock())
            if not chosen:
                self._free.put_nowait(lane)
                continue
            run = asyncio.create_task(self._run(lane, self._batch(chosen, collated if chosen == planned else None)))
            self._running.add(run)
            run.add_done_callback(self._running.discard)

    async def _until_due(self) -> None:
        """Wait until a batch should be taken."""
        while (delay := self._scheduler.due(self._clock())) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if delay == NEVER else delay):
                    await self._arrived.wait()

    async def _planned(self) -> tuple[list[Waiting], Collated | None]:
        """A batch, collated ahead. None if that goes wrong: the lane tries again, and tells these rows' callers why."""
        planned = self._scheduler.plan()
        rows, collate = self._queue.rows(planned), self._lanes[0].collate
        try:
            return planned, await asyncio.get_running_loop().run_in_executor(self._ahead, collate, rows)
        except Exception:
            return planned, None

    def _batch(self, members: list[Waiting], collated: Collated | None = None) -> Batch:
        rows = self._queue.rows(members)
        return Batch(
            members=members,
            rows=rows,
            collated=collated,
            padded_tokens=self._shapes.row_count(len(rows)) * max(member.length for member in members),
        )

    async def _run(self, lane: BatchWorker, batch: Batch) -> None:
        """Run a batch, and free the lane."""
        try:
            await self._answer(lane, batch)
        finally:
            self._free.put_nowait(lane)

    async def _answer(self, lane: BatchWorker, batch: Batch) -> None:
        """Run a batch and hand out the answers. Never raises: a failure is told to the callers of this batch."""
        begun = self._clock()
        try:
            ran = await lane.run(batch)
        except Exception as error:
            if out_of_memory(error) and len(batch.rows) > 1:
                await self._answer_halves(lane, batch)
            else:
                log.error("%s: a run of %d rows failed", self.name, len(batch.rows), exc_info=error)
                self._queue.fail(batch.members, error)
            return
        self._observer.batch(
            rows=len(batch.rows),
            tokens=batch.tokens,
            padded_tokens=batch.padded_tokens,
            queue_seconds=[begun - member.arrived for member in batch.members],
            spent=ran.spent,
        )
        self._queue.answer(batch.members, ran.answers, ran.spent)

    async def _answer_halves(self, lane: BatchWorker, batch: Batch) -> None:
        """There was no memory for the whole."""
        log.warning("%s: no memory for %d rows together; trying in halves", self.name, len(batch.rows))
        middle = len(batch.rows) // 2
        for half in (batch.members[:middle], batch.members[middle:]):
            await self._answer(lane, self._batch(half))
