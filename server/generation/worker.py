"""The thread that runs the steps of generation. It runs while there is work, and ends when there is none.

The scheduler decides; the thread hands all tokens of a step to the event loop at once. Their receivers return at once,
so that no caller can hold up a step.
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from server.arrays import Floats, Ids
from server.errors import DeadlineExceeded, NotEnoughMemory
from server.generation.prefix import Copy
from server.generation.request import TokenOutput
from server.generation.runner import Runner
from server.generation.sampler import SampledToken
from server.generation.scheduler import Decode, Plan, Prefill, Scheduler, SequenceState
from server.generation.stream import Stream
from server.observability.observer import Observer, Spent

log = logging.getLogger(__name__)

Parts = Iterator[list[Floats]]  # of whole texts: their logits, a run for each part
Forwarded = tuple[list[Floats], float]  # the logits of a part, and the seconds that the run took
Forward = tuple[Parts, float, "Future[Forwarded]"]  # a part to run, and since when it waits
Event = tuple[Stream, TokenOutput | Exception]
Note = Callable[[], None]
Clock = Callable[[], float]

GROW_AGAIN_S = 10.0  # after memory was short


class StepFailed(RuntimeError):
    """A run of the model failed, and with it the requests that were in it."""


class Worker:
    """Owns the runner. Everything public is called from the event loop and returns at once."""

    def __init__(self, runner: Runner, scheduler: Scheduler, *, observer: Observer, clock: Clock) -> None:
        self._clock = clock
        self._runner = runner
        self._scheduler = scheduler
        self._observer = observer
        self._lock = threading.Lock()  # over the scheduler and all that follows
        self._streams: dict[SequenceState, Stream] = {}
        self._forwards: deque[Forward] = deque()
        self._work: Future[None] | None = None  # None: nothing to do
        self._loop: asyncio.AbstractEventLoop | None = None
        self._grow_again = -math.inf  # after a failure not before this time
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="generation")

    async def warm_up(self) -> None:
        """Have done, on the thread that will step, what the first steps would wait for."""
        await asyncio.wrap_future(self._executor.submit(self._runner.decoder.warm_up))

    def submit(self, *streams: Stream, field: str) -> None:
        """Let all of them wait for their turns, or none. Raises what `Scheduler.submit` raises."""
        with self._lock:
            self._scheduler.submit(*(stream.sequence for stream in streams), field=field)
            self._streams.update({stream.sequence: stream for stream in streams})
            self._wake()

    def cancel(self, *streams: Stream) -> None:
        """They leave at the next step. Harmless for those that have left."""
        with self._lock:
            for stream in streams:
                if stream.sequence in self._streams:
                    self._scheduler.cancel(stream.sequence)

    def _stop(self, stream: Stream) -> None:
        """Its text has come to its end, which only the caller can see."""
        stream.stopped = True
        self.cancel(stream)

    @property
    def running_inputs(self) -> int:
        return len(self._scheduler.running)

    def parts(self, texts: Sequence[Ids], longest: int) -> Parts:
        """Whole texts to `forward`, as `Decoder.forward` reads them: nothing is computed yet."""
        return self._runner.decoder.forward(texts, longest)

    def forward(self, parts: Parts) -> "asyncio.Future[Forwarded]":
        """The next part, computed between two steps; never if the future is cancelled before."""
        future: Future[Forwarded] = Future()
        with self._lock:
            self._forwards.append((parts, self._clock(), future))
            self._wake()
        return asyncio.wrap_future(future)

    @contextmanager
    def reserve(self, *, requests: int, tokens: int, field: str) -> Iterator[None]:
        """Take so much of the queue for a while. Raises Overloaded, and InvalidRequest for what it can never hold."""
        admission = self._scheduler.admission
        with self._lock:
            admission.acquire(requests=requests, tokens=tokens, field=field)
        try:
            yield
        finally:
            with self._lock:
                admission.release(requests=requests, tokens=tokens)

    def cancel_all(self) -> None:
        """Everything that is under way leaves at the next step."""
        self.cancel(*self._streams.values())

    async def idle(self) -> None:
        """Wait until there is nothing to do."""
        if (work := self._work) is not None:
            await asyncio.shield(asyncio.wrap_future(work))

    def _wake(self) -> None:
        if self._work is None:
            self._loop = asyncio.get_running_loop()
            self._work = self._executor.submit(self._run_until_idle)

    # ---- what follows runs on the thread

    def _run_until_idle(self) -> None:
        try:
            while self._run_next():
                pass
        except Exception as error:  # a bug; without this everybody would wait for ever, and who comes after them
            self._abort(error)

    def _run_next(self) -> bool:
        """Do what is to be done next; False if there is nothing."""
        self._grow()
        with self._lock:
            forward = self._forwards.popleft() if self._forwards else None
        if forward is not None:
            self._run_forward(*forward)
        with self._lock:  # planned only now: who has left meanwhile is in no step
            plan = self._scheduler.plan(self._clock())
            if plan == Plan() and not self._forwards:
                self._work = None
                return False
            gone = [self._streams.pop(sequence) for sequence in plan.cancelled + plan.expired]
            rows = [self._streams[sequence] for sequence in plan.step.sequences] if plan.step else []
        self._tell_gone(gone)
        if plan.step is not None:
            self._run(plan.copies, plan.step, rows)
        return True

    def _abort(self, error: Exception) -> None:
        """Tell everybody, those who wait included, and begin anew with whoever comes next."""
        with self._lock:
            rows, forwards = list(self._streams.values()), list(self._forwards)
            self._streams.clear()
            self._forwards.clear()
            self._scheduler.clear()
            self._work = None
        for _, _, future in forwards:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._fail("plan", error, rows)

    def _grow(self) -> None:
        """Make room for who waits, if there is memory; else they wait for a slot."""
        with self._lock:
            slots = self._scheduler.wanted_slots
        if not slots or self._clock() < self._grow_again:
            return
        try:
            self._runner.decoder.grow(slots)
        except Exception as error:  # whatever it is: there are as many slots as before
            unexpected = None if isinstance(error, NotEnoughMemory) else error
            log.warning("%s: no more slots for now: %s", self._scheduler.admission.name, error, exc_info=unexpected)
            self._grow_again = self._clock() + GROW_AGAIN_S
            return
        with self._lock:
            self._scheduler.grow(slots)
        log.info("%s: %d slots", self._scheduler.admission.name, slots)

    def _run_forward(self, parts: Parts, arrived: float, future: "Future[Forwarded]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        started = self._clock()
        try:
            logits = next(parts)
        except Exception as error:  # the caller's to see
            future.set_exception(error)
            return
        seconds = self._clock() - started
        note = partial(
            self._observer.batch,
            items=len(logits),
            tokens=sum(map(len, logits)),
            padded_tokens=len(logits) * max(map(len, logits)),
            queue_seconds=[started - arrived] * len(logits),
            spent=Spent(run_seconds=seconds),
        )
        self._tell([], [note])
        future.set_result((logits, seconds))

    def _run(self, copies: Sequence[Copy], step: Prefill | Decode, rows: list[Stream]) -> None:
        started = self._clock()
        try:
            self._runner.copy(copies)
        except Exception as error:
            self._fail("copy", error, self._fail_all())
            return
        try:
            chosen = self._runner.run(step, rows)
        except Exception as error:  # whatever it is: those in this step have no answer, the others go on
            with self._lock:
                for row in rows:
                    self._scheduler.fail(row.sequence)
                    del self._streams[row.sequence]
            self._fail(step.kind, error, rows)
            return
        now = self._clock()
        events = self._accept(step, rows, chosen, now)
        note = partial(
            self._observer.step,
            kind=step.kind,
            sequences=len(rows),
            tokens=step.tokens,
            seconds=now - started,
        )
        self._tell(events, [note, *(self._ending(row, step) for row, step in events if step.finish_reason)])

    def _fail_all(self) -> list[Stream]:
        """Give up everybody who has a slot."""
        with self._lock:
            rows = [self._streams.pop(sequence) for sequence in self._scheduler.running]
            self._scheduler.fail_all()
        return rows

    def _accept(
        self, step: Prefill | Decode, rows: list[Stream], chosen: list[SampledToken], now: float
    ) -> list[tuple[Stream, TokenOutput]]:
        """Take each row's token, if it has one yet; let those go that have their last."""
        with self._lock:
            self._scheduler.advance(step)
            events = [(row, row.accept(token, now)) for row, token in zip(rows, chosen, strict=False)]
            for row, token in events:
                if token.finish_reason:
                    self._scheduler.finish(row.sequence)
                    del self._streams[row.sequence]
        return events

    def _fail(self, kind: str, error: Exception, rows: list[Stream]) -> None:
        log.error("a %s of %d requests failed", kind, len(rows), exc_info=error)
        events = []
        for row in rows:
            failure = StepFailed(f"a {kind} failed: {error}")
            failure.__cause__ = error
            events.append((row, failure))
        self._tell(events, [partial(self._observer.failed, len(rows))])

    def _tell_gone(self, gone: list[Stream]) -> None:
        if not gone:
            return
        now = self._clock()
        events: list[Event] = []
        notes: list[Note] = []
        for row in gone:
            last = row.cancelled(now)
            waited_only, reason = row.sequence.slot < 0, row.sequence.context.why_gone(now)
            expired = DeadlineExceeded("the deadline of the request passed before its last token was there")
            events.append((row, last if row.sequence.cancelled else expired))
            notes.append(partial(self._observer.dropped, reason) if waited_only else self._ending(row, last))
        self._tell(events, notes)

    def _ending(self, row: Stream, last: TokenOutput) -> Note:
        """What the observer hears when a generation that had a slot has ended."""

        def note() -> None:  # when the caller has taken all before it
            reason = "stop" if row.stopped else last.finish_reason
            self._observer.finished(reason=reason, usage=last.usage)

        return note

    def _tell(self, events: Sequence[Event], notes: Sequence[Note]) -> None:
        assert self._loop is not None, "the worker was not started; this is a bug"
        self._loop.call_soon_threadsafe(self._deliver, events, notes)

    # ---- and this on the event loop again

    def _deliver(self, events: Sequence[Event], notes: Sequence[Note]) -> None:
        for stream, event in events:
            if not stream.stopped and stream.take(event):
                self._stop(stream)
        for note in notes:
            note()
