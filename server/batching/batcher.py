"""Runs the batches that the scheduler chooses: the thin part, with the clock, the threads and the callers.

There is one queue, and one worker for each session. A free worker takes the next batch and collates it in its own
thread. While all workers are busy, the next batch is planned and collated ahead of time, unless it is small. Its items
stay in the queue: they can be cancelled, and more can join. If a better batch is possible once a worker is free, that
batch runs instead. It starts before the callers of the last batch are answered.
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
from server.batching.collate import Item, Outputs
from server.batching.forecast import Forecast
from server.batching.queue import Queue, Request, Reservation
from server.batching.scheduler import Budget, Scheduler, tokens_of, work_of
from server.batching.waiting import NEVER, WaitingItem
from server.batching.worker import Batch, BatchResult, BatchWorker, Collated, SessionProtocol, out_of_memory
from server.errors import NotReady
from server.host.priority import yield_to_event_loop
from server.observability.observer import Observer

SMALL_TOKENS = 256  # of a batch that takes no longer to collate than to switch to a thread for it: a tenth of a ms

log = logging.getLogger(__name__)


class Batcher:
    """Runs the items of several callers in shared batches."""

    def __init__(
        self,
        sessions: Sequence[SessionProtocol],
        *,
        name: str,
        budget: Budget,
        limits: Limits,
        max_delay_s: float = 0.0,
        max_queue_s: float = 30.0,
        observer: Observer,
        in_flight: InFlight | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.slots = 0
        self.in_flight = in_flight or InFlight(f"{name} is being unloaded")
        self._shapes = budget.shapes
        self._observer = observer
        self._scheduler = Scheduler(budget, max_delay_s=max_delay_s)
        self._forecast = Forecast(name, self._scheduler, workers=len(sessions), max_queue_s=max_queue_s)
        self._queue = Queue(name, self._scheduler, self._forecast, limits, self._observer)
        self._max_queue_s = max_queue_s
        self.admission = self._queue.admission
        self._workers = [
            BatchWorker(session, f"{name}-{number}", self._shapes, clock) for number, session in enumerate(sessions)
        ]
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix=f"collate-{name}", initializer=yield_to_event_loop)
        self._free: asyncio.Queue[BatchWorker] = asyncio.Queue()
        self._running: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._arrived = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    # ---- for callers

    @property
    def waiting_inputs(self) -> int:
        return self.admission.inputs

    @property
    def waiting_tokens(self) -> int:
        return self.admission.tokens

    @property
    def running_inputs(self) -> int:
        return self._queue.running

    @property
    def predicted_wait_s(self) -> float:
        """The predicted time until an input that arrives now would run."""
        return self._forecast.predict(items=1, preparing=self._queue.preparing, now=self._clock()).wait_s

    @asynccontextmanager
    async def reserve(
        self, inputs: int, context: RequestContext, *, field: str = "inputs"
    ) -> AsyncIterator[Reservation]:
        """Reserve queue capacity for the inputs of a request before they are prepared.

        Raises InvalidRequest if the inputs can never fit, Overloaded if they do not fit now or are predicted to be
        answered too late, and DeadlineExceeded when the deadline passes inside the block.
        """
        with self.in_flight.track():  # refuses requests that found the model before it was unloaded
            now = self._clock()
            context.check_deadline(now)
            predicted = self._queue.reserve(inputs, context, now, field=field)
            async with within_deadline(context, now) as timeout:
                reservation = Reservation(inputs, context, field, timeout)
                try:
                    yield reservation
                finally:
                    self.admission.release(inputs=reservation.inputs, tokens=0)
                    self._learn(reservation, self._clock() - now - predicted.finish_s)

    def _learn(self, reservation: Reservation, late_s: float) -> None:
        """Learn from a request that was answered, or has expired, `late_s` seconds later than predicted."""
        if reservation.answered is not None:
            self._forecast.answered(self._clock() - reservation.answered)
        if reservation.answered is not None or reservation.timeout.expired():
            self._forecast.lateness.record(late_s)

    async def run(self, items: Sequence[Item], reservation: Reservation) -> list[Outputs]:
        """Run the items of a reservation, and return the requested outputs of each item, in order.

        The items take over the reservation. Raises InvalidRequest if their tokens can never fit; Overloaded if they do
        not fit now, are predicted to be answered too late, or have waited for too long.
        """
        if not items:
            return []
        now, loop = self._clock(), asyncio.get_running_loop()
        request = Request(items, [None] * len(items), len(items), loop.create_future())
        keys = self._queue.admit(request, reservation, now)
        self._arrived.set()
        patience = None
        if reservation.context.deadline is None:
            patience = loop.call_later(self._max_queue_s, self._refuse_waiting, keys)
        try:
            await request.done
        except asyncio.CancelledError:
            self._queue.drop(keys, reservation.cancel_reason(self._clock()))
            raise
        except Exception:
            self._queue.drop(keys, "failed")
            raise
        finally:
            if patience is not None:
                patience.cancel()
        reservation.answered = self._clock()
        self._observer.answered(request.spent(reservation.answered - now))
        return [answer for answer in request.answers if answer is not None]

    def _refuse_waiting(self, keys: range) -> None:
        self._queue.refuse_waiting(keys, self._clock())

    async def start(self) -> None:
        for worker in self._workers:
            self._free.put_nowait(worker)
        self._loop = asyncio.create_task(self._serve(), name=f"batcher-{self.name}")

    async def drain(self) -> None:
        """Refuse new requests, answer those in flight, and stop."""
        try:
            self.in_flight.close()
            await self.in_flight.wait_idle()
            if self._running:
                await asyncio.wait(self._running)  # batches whose requests were cancelled
        finally:  # also when the drain is cancelled
            if self._loop is not None:
                self._loop.cancel()
                await asyncio.gather(self._loop, return_exceptions=True)
                self._loop = None  # its traceback refers to this batcher, and so to the sessions
            for worker in self._workers:
                worker.close()
            self._ahead.shutdown(wait=False)

    def abort(self) -> None:
        """Fail all requests in flight with NotReady."""
        self._queue.abort(NotReady(f"{self.name} is being unloaded"))

    # ---- the loop

    async def _serve(self) -> None:
        while True:
            await self._until_due()
            planned, collated = await self._plan_ahead() if self._free.empty() else ([], None)
            worker = await self._free.get()
            now = self._clock()
            self._queue.refuse_late(now)
            chosen = self._queue.take(planned, now)
            if not chosen:
                self._free.put_nowait(worker)
                continue
            run = asyncio.create_task(self._run(worker, self._batch(chosen, collated if chosen == planned else None)))
            self._running.add(run)
            run.add_done_callback(self._running.discard)

    async def _until_due(self) -> None:
        """Wait until a batch is due."""
        while (delay := self._scheduler.due(self._clock())) > 0:
            self._arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if delay == NEVER else delay):
                    await self._arrived.wait()

    async def _plan_ahead(self) -> tuple[list[WaitingItem], Collated | None]:
        """The next batch, collated ahead of time. None if collating fails: the worker retries and reports the error.

        A small batch is left to the worker.
        """
        planned = self._scheduler.plan(self._clock())
        if tokens_of(planned) <= SMALL_TOKENS:
            return [], None
        items, collate = self._queue.items(planned), self._workers[0].collate
        try:
            return planned, await asyncio.get_running_loop().run_in_executor(self._ahead, collate, items)
        except Exception:
            return planned, None

    def _batch(self, members: list[WaitingItem], collated: Collated | None = None) -> Batch:
        items = self._queue.items(members)
        return Batch(
            members=members,
            items=items,
            collated=collated,
            padded_tokens=self._shapes.batch_size(len(items)) * max(member.length for member in members),
        )

    async def _run(self, worker: BatchWorker, batch: Batch) -> None:
        """Run a batch, free the worker, and answer. Never raises: a failure goes to the callers of this batch.

        They learn of a failure first: their other items must not run.
        """
        begun = self._clock()
        try:
            outcome = await self._outcome(worker, batch, begun)
            if _is_too_large(batch, outcome):
                await self._run_halves(worker, batch)
                return
            if isinstance(outcome, Exception):
                self._fail(batch, outcome)
                return
        finally:
            worker.busy_since = self._clock() if len(self._scheduler) and not self._scheduler.max_delay_s else None
            self._free.put_nowait(worker)
        self._answer(batch, outcome, begun)

    async def _outcome(self, worker: BatchWorker, batch: Batch, begun: float) -> BatchResult | Exception:
        """Run a batch, and learn from the time that it takes."""
        pace = self._scheduler.pace
        pace.start(worker, work_of(batch.members), begun if worker.busy_since is None else worker.busy_since)
        try:
            result = await worker.run(batch)
        except Exception as error:
            pace.finish(worker, self._clock(), failed=True)
            return error
        pace.finish(worker, self._clock())
        return result

    def _fail(self, batch: Batch, error: Exception) -> None:
        log.error("%s: a batch of %d items failed", self.name, len(batch.items), exc_info=error)
        self._queue.fail(batch.members, error)

    def _answer(self, batch: Batch, result: BatchResult, begun: float) -> None:
        """Deliver the answers of a batch that began to run at the time `begun`."""
        self._observer.batch(
            items=len(batch.items),
            tokens=batch.tokens,
            padded_tokens=batch.padded_tokens,
            queue_seconds=[begun - member.arrived for member in batch.members],
            spent=result.spent,
        )
        self._queue.answer(batch.members, result.answers, result.spent)

    async def _run_halves(self, worker: BatchWorker, batch: Batch) -> None:
        """Run a batch for which there was not enough memory in halves, and these in halves if need be, and answer."""
        log.warning("%s: not enough memory for a batch of %d items; trying halves", self.name, len(batch.items))
        middle = len(batch.items) // 2
        for members in (batch.members[:middle], batch.members[middle:]):
            half, begun = self._batch(members), self._clock()
            outcome = await self._outcome(worker, half, begun)
            if _is_too_large(half, outcome):
                await self._run_halves(worker, half)
            elif isinstance(outcome, Exception):
                self._fail(half, outcome)
            else:
                self._answer(half, outcome, begun)


def _is_too_large(batch: Batch, outcome: BatchResult | Exception) -> bool:
    """Whether there was not enough memory for a batch that can be smaller."""
    return isinstance(outcome, Exception) and out_of_memory(outcome) and len(batch.items) > 1
