"""The thread that runs the steps of generation. It runs while there is work, and stops when there is none.

The scheduler decides; the thread passes the outputs of a step to the event loop in one call. The callbacks there return
at once, so a slow caller cannot delay a step.
"""

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from server.arrays import Floats, Ids
from server.errors import NotEnoughMemory
from server.generation.prefix import Copy
from server.generation.request import TokenOutput
from server.generation.runner import Runner
from server.generation.sampler import SampledToken
from server.generation.scheduler import Scheduler
from server.generation.sequence import Decode, Plan, Prefill, SequenceState, Size
from server.generation.stream import Stream
from server.host.priority import yield_to_event_loop
from server.observability.observer import Observer, TimeSpent

log = logging.getLogger(__name__)

Chunks = Iterator[list[Floats]]  # runs of the model over a batch of texts, a chunk at a time: the logits of each text
ChunkResult = tuple[list[Floats], float]  # the logits of a chunk, and the seconds that the run took
ForwardJob = tuple[
    Chunks, float, "Future[ChunkResult]"
]  # runs, of which the next is due; when it was submitted; the result
Output = tuple[Stream, TokenOutput | Exception]
ObserverCall = Callable[[], None]
Clock = Callable[[], float]

GROW_RETRY_S = 10.0  # after memory was short


class StepFailed(RuntimeError):
    """A run of the model failed, and with it the requests in the run."""


class StepWorker:
    """Owns the runner. All public methods are called on the event loop and return at once."""

    def __init__(self, runner: Runner, scheduler: Scheduler, *, observer: Observer, clock: Clock) -> None:
        self._runner, self._scheduler, self._observer, self._clock = runner, scheduler, observer, clock
        self._lock = threading.Lock()  # guards the scheduler and the next three attributes
        self._streams: dict[SequenceState, Stream] = {}
        self._forward_jobs: deque[ForwardJob] = deque()
        self._work: Future[None] | None = None  # None: the thread is idle
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_grow = -math.inf  # the time before which the cache does not try to grow
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="generation", initializer=yield_to_event_loop)

    async def warm_up(self) -> None:
        """Warm up the decoder, on the thread that runs the steps."""
        await asyncio.wrap_future(self._executor.submit(self._runner.decoder.warm_up))

    def submit(self, *streams: Stream, field: str) -> None:
        """Queue all streams, or none. Raises the errors of `Scheduler.submit`."""
        with self._lock:
            self._scheduler.submit(*(stream.sequence for stream in streams), field=field)
            self._streams.update({stream.sequence: stream for stream in streams})
            self._wake()

    def cancel(self, *streams: Stream) -> None:
        """Remove the streams before the next step. Has no effect on streams that have ended."""
        with self._lock:
            for stream in streams:
                if stream.sequence in self._streams:
                    self._scheduler.cancel(stream.sequence)

    @property
    def running_inputs(self) -> int:
        return len(self._scheduler.running)

    @property
    def predicted_wait_s(self) -> float:
        """The predicted time until the first token of a short prompt that arrives now."""
        with self._lock:
            return self._scheduler.forecast.predict(self._scheduler.load(), [Size(1, 1)]).first_s

    def chunks(self, texts: Sequence[Ids], max_tokens: int) -> Chunks:
        """The runs over whole texts, for `forward`; see `Decoder.forward`. Computes nothing yet."""
        return self._runner.decoder.forward(texts, max_tokens)

    def forward(self, chunks: Chunks) -> "asyncio.Future[ChunkResult]":
        """Run the next chunk between two steps. It does not run if the future is cancelled before."""
        future: Future[ChunkResult] = Future()
        with self._lock:
            self._forward_jobs.append((chunks, self._clock(), future))
            self._wake()
        return asyncio.wrap_future(future)

    @contextmanager
    def reserve(self, *, inputs: int, tokens: int, field: str) -> Iterator[None]:
        """Hold a share of the queue for the block. Raises Overloaded, and InvalidRequest if it can never fit."""
        admission = self._scheduler.admission
        with self._lock:
            admission.acquire(inputs=inputs, tokens=tokens, field=field)
        try:
            yield
        finally:
            with self._lock:
                admission.release(inputs=inputs, tokens=tokens)

    def cancel_all(self) -> None:
        """Remove all waiting and running streams before the next step."""
        self.cancel(*self._streams.values())

    async def wait_idle(self) -> None:
        """Wait until there is no work."""
        if (work := self._work) is not None:
            await asyncio.shield(asyncio.wrap_future(work))

    def _wake(self) -> None:
        if self._work is None:
            self._loop = asyncio.get_running_loop()
            self._work = self._executor.submit(self._run_until_idle)

    # ---- on the thread

    def _run_until_idle(self) -> None:
        try:
            while self._run_next():
                pass
        except Exception as error:  # a bug; without this all present and later requests would wait for ever
            self._abort(error)

    def _run_next(self) -> bool:
        """Run a chunk of whole texts and a step, if there are any. False if there is no work left."""
        self._grow()
        with self._lock:
            job = self._forward_jobs.popleft() if self._forward_jobs else None
        if job is not None:
            self._run_forward(*job)
        with self._lock:  # the plan is made after the forward run, so that streams cancelled meanwhile are not in it
            plan = self._scheduler.plan(self._clock())
            if plan == Plan() and not self._forward_jobs:
                self._scheduler.forecast.paused()
                self._work = None
                return False
            removed = [self._streams.pop(sequence) for sequence in plan.cancelled + plan.expired + plan.refused]
            streams = [self._streams[sequence] for sequence in plan.step.sequences] if plan.step else []
        if removed:
            self._end_removed(removed, plan.refused)
        if plan.step is not None:
            self._run_step(plan.copies, plan.step, streams)
        return True

    def _abort(self, error: Exception) -> None:
        """Fail all running and waiting requests and jobs, and clear the scheduler for later requests."""
        with self._lock:
            streams, jobs = list(self._streams.values()), list(self._forward_jobs)
            self._streams.clear()
            self._forward_jobs.clear()
            self._scheduler.clear()
            self._work = None
        for _, _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._fail("plan", error, streams)

    def _grow(self) -> None:
        """Add slots if requests wait for them and there is memory. Otherwise the requests wait for a free slot."""
        with self._lock:
            slots = self._scheduler.wanted_slots
        if not slots or self._clock() < self._next_grow:
            return
        try:
            self._runner.decoder.grow(slots)
        except Exception as error:  # after any error the cache has as many slots as before
            unexpected = None if isinstance(error, NotEnoughMemory) else error
            log.warning("%s: no more slots for now: %s", self._scheduler.admission.name, error, exc_info=unexpected)
            self._next_grow = self._clock() + GROW_RETRY_S
            return
        with self._lock:
            self._scheduler.grow(slots)
        log.info("%s: %d slots", self._scheduler.admission.name, slots)

    def _run_forward(self, chunks: Chunks, submitted: float, future: "Future[ChunkResult]") -> None:
        if not future.set_running_or_notify_cancel():
            return
        started = self._clock()
        try:
            logits = next(chunks)
        except Exception as error:  # raised in the caller
            future.set_exception(error)
            return
        seconds = self._clock() - started
        batch = partial(
            self._observer.batch,
            items=len(logits),
            tokens=sum(map(len, logits)),
            padded_tokens=len(logits) * max(map(len, logits)),
            queue_seconds=[started - submitted] * len(logits),
            spent=TimeSpent(run_seconds=seconds),
        )
        self._send([], [batch])
        future.set_result((logits, seconds))

    def _run_step(self, copies: Sequence[Copy], step: Prefill | Decode, streams: list[Stream]) -> None:
        started = self._clock()
        try:
            self._runner.copy(copies)
        except Exception as error:
            self._fail("copy", error, self._remove_running())
            return
        try:
            sampled = self._runner.run(step, streams)
        except Exception as error:  # fails the sequences in this step; the others go on
            with self._lock:
                for stream in streams:
                    self._scheduler.fail(stream.sequence)
                    del self._streams[stream.sequence]
            self._fail(step.kind, error, streams)
            return
        now = self._clock()
        outputs = self._accept(step, streams, sampled, now, now - started)
        ran = partial(
            self._observer.step, kind=step.kind, sequences=len(streams), tokens=step.tokens, seconds=now - started
        )
        finished = [
            self._finished(stream, output, output.finish_reason) for stream, output in outputs if output.finish_reason
        ]
        self._send(outputs, [ran, *finished])

    def _remove_running(self) -> list[Stream]:
        """Remove and return the streams that have a slot."""
        with self._lock:
            streams = [self._streams.pop(sequence) for sequence in self._scheduler.running]
            self._scheduler.fail_all()
        return streams

    def _accept(
        self, step: Prefill | Decode, streams: list[Stream], sampled: list[SampledToken], now: float, seconds: float
    ) -> list[tuple[Stream, TokenOutput]]:
        """The outputs of a step; none if the step did not reach the end of a prompt. Removes finished streams."""
        with self._lock:
            self._scheduler.advance(step)
            self._scheduler.forecast.ran(step, seconds, now)
            outputs = [(stream, stream.accept(token, now)) for stream, token in zip(streams, sampled, strict=False)]
            for stream, output in outputs:
                if output.finish_reason:
                    self._scheduler.forecast.ended(stream.sequence, output.usage.completion_tokens, now)
                    self._scheduler.finish(stream.sequence)
                    del self._streams[stream.sequence]
        return outputs

    def _fail(self, kind: str, error: Exception, streams: list[Stream]) -> None:
        log.error("a %s of %d requests failed", kind, len(streams), exc_info=error)
        outputs: list[Output] = []
        for stream in streams:
            failure = StepFailed(f"a {kind} failed: {error}")
            failure.__cause__ = error
            outputs.append((stream, failure))
        self._send(outputs, [partial(self._observer.failed, len(streams))])

    def _end_removed(self, removed: list[Stream], refused: Collection[SequenceState]) -> None:
        """Send the last outputs of cancelled, expired and refused streams."""
        now, retry_after_s = self._clock(), self._scheduler.admission.retry_after_s
        outputs: list[Output] = []
        observer_calls: list[ObserverCall] = []
        for stream in removed:
            overloaded, reason = stream.sequence in refused, stream.sequence.context.cancel_reason(now)
            outputs.append((stream, stream.output_of_removal(now, retry_after_s=retry_after_s if overloaded else None)))
            if stream.sequence.slot < 0:
                observer_calls.append(partial(self._observer.dropped, "overloaded" if overloaded else reason))
            else:
                ended = "slow_client" if reason == "slow_client" else "cancelled"
                observer_calls.append(self._finished(stream, stream.output_of_cancellation(now), ended))
        self._send(outputs, observer_calls)

    def _finished(self, stream: Stream, last: TokenOutput, reason: str) -> ObserverCall:
        """The observer call for a stream that had a slot and has ended for a reason."""

        def finished() -> None:  # called after the stream has received its last output, and so may have been stopped
            self._observer.finished(reason="stop" if stream.stopped else reason, usage=last.usage)

        return finished

    def _send(self, outputs: Sequence[Output], observer_calls: Sequence[ObserverCall]) -> None:
        assert self._loop is not None, "the worker was not started; this is a bug"
        self._loop.call_soon_threadsafe(self._receive, outputs, observer_calls)

    # ---- on the event loop

    def _receive(self, outputs: Sequence[Output], observer_calls: Sequence[ObserverCall]) -> None:
        for stream, output in outputs:
            if not stream.stopped and stream.on_output(output):
                stream.stopped = True
                self.cancel(stream)
        for call in observer_calls:
            call()
