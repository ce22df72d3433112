"""The door of generation: checks a request, lets it in, and gives its tokens as they come.

It takes arrays and plain values only. What decides is scheduler.py, what works is worker.py.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from server.admission.deadline import within_deadline
from server.admission.in_flight import InFlight
from server.admission.queue import AdmissionQueue, Limits, RequestContext
from server.arrays import Floats, Ids
from server.concurrency.weighted_semaphore import WeightedSemaphore
from server.config.settings import ModelSettings
from server.errors import InvalidRequest, NotEnoughMemory, NotReady, Overloaded
from server.generation.cache import SlotCache, check_room, megabytes, room_in
from server.generation.cuda_graphs import decoder_of, layout_of, memory_of
from server.generation.decoder import Decoder
from server.generation.request import Sampling
from server.generation.runner import Runner
from server.generation.sampler import SamplingState
from server.generation.scheduler import Scheduler, SequenceState
from server.generation.stream import Entrant, Stream
from server.generation.worker import Clock, Worker
from server.observability.observer import NoOpObserver, Observer, Spent
from server.runtime.session import Session

log = logging.getLogger(__name__)

SLOTS = {"cuda": 128}  # at most, by provider
SLOTS_AT_FIRST = 8
CHUNK_TOKENS = {"cuda": 512}
FORWARD_TOKENS = {"cuda": 1024}  # of whole texts, padding included, that run between two steps
LOGITS_AT_ONCE = 1 << 26  # of whole texts, for all who ask together: 256 MiB
SHARED_TOKENS = 16  # from as many on, what two prompts begin with is copied and not read again
SLOTS_ELSEWHERE, CHUNK_TOKENS_ELSEWHERE, FORWARD_TOKENS_ELSEWHERE = 32, 64, 64


class Engine:
    """Generates for many requests at once. To be used on one event loop.

    A text ends after any of the tokens `end_ids`. Prompts that begin with `shared_tokens` equal tokens or more are read
    only once.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        admission: AdmissionQueue,
        chunk_tokens: int,
        forward_tokens: int = FORWARD_TOKENS_ELSEWHERE,
        end_ids: Collection[int] = (),
        shared_tokens: int = SHARED_TOKENS,
        observer: Observer | None = None,
        in_flight: InFlight | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        layout = decoder.cache.layout
        self.context_length = layout.capacity  # tokens of prompt and continuation
        self.slots = layout.max_slots
        self.vocabulary = decoder.vocabulary
        self.admission = admission
        self._forward_tokens = forward_tokens
        self._logits = WeightedSemaphore(LOGITS_AT_ONCE)
        self._end_ids = frozenset(end_ids)
        self._observer = observer or NoOpObserver()
        scheduler = Scheduler(
            admission,
            slots=layout.slots,
            max_slots=layout.max_slots,
            chunk_tokens=chunk_tokens,
            shared_tokens=shared_tokens,
            step_rows=decoder.rows_of,
        )
        self._worker = Worker(Runner(decoder), scheduler, observer=self._observer, clock=clock)
        self._clock = clock
        self.in_flight = in_flight or InFlight(f"{admission.name} is being unloaded")
        self._accepting = False

    @property
    def waiting_inputs(self) -> int:
        return self.admission.requests

    @property
    def waiting_tokens(self) -> int:
        return self.admission.tokens

    @property
    def running_inputs(self) -> int:
        return self._worker.running_inputs

    async def start(self) -> None:
        """Accept requests from now on."""
        await self._worker.warm_up()
        self._accepting = True

    async def drain(self) -> None:
        """Accept nothing more and let what is under way be computed, whether its callers have read it or not."""
        self.in_flight.close()
        await self.in_flight.wait_idle()  # those too whose prompt is not tokens yet
        self._accepting = False
        await self._worker.idle()

    def abort(self) -> None:
        """Accept nothing more, and cancel what is under way."""
        self._accepting = False
        self._worker.cancel_all()

    @contextmanager
    def reserve(self, requests: int, *, field: str) -> Iterator[None]:
        """Places in the queue for so many prompts, before anything is made of them; for a while.

        Raises Overloaded, and InvalidRequest if there can never be so many.
        """
        with self._counting_refusals(), self._worker.reserve(requests=requests, tokens=0, field=field):
            yield

    @contextmanager
    def admit(
        self, entrants: Sequence[Entrant], sampling: Sampling, context: RequestContext, *, field: str = "prompts"
    ) -> Iterator[None]:
        """Let in all of a request's prompts, or none of them. Leaving ends those that are not done by the next step.

        Each is continued token by token, until a step has a `finish_reason`, an error comes instead, or who takes the
        steps wants no more. Where prompt and `max_tokens` together exceed the context, the continuation ends with the
        context, and with `finish_reason` "length". Raises InvalidRequest, Overloaded, NotReady, DeadlineExceeded; what
        may come is DeadlineExceeded or StepFailed.
        """
        self._check_accepting()
        sampling.check_vocabulary(self.vocabulary)
        for entrant in entrants:
            self._check_ids(entrant.name, entrant.ids)
        streams = [self._stream(entrant, sampling, context) for entrant in entrants]
        with self._counting_refusals():
            self._worker.submit(*streams, field=field)
        try:
            yield
        finally:
            self._worker.cancel(*streams)

    async def logits(self, ids: Ids, lengths: Ids, context: RequestContext) -> Floats:
        """The logits (n, t, vocabulary) after the first `lengths` (n,) tokens of each row of `ids` (n, t), 0 elsewhere.

        They are computed in parts between the steps of generation. Raises InvalidRequest, Overloaded, NotReady,
        DeadlineExceeded, and the runtime's own error if a run fails.
        """
        self._check_accepting()
        begun = self._clock()
        context.check_deadline(begun)
        place = self._worker.reserve(requests=len(ids), tokens=int(lengths.sum()), field="input_ids")
        with self._counting_refusals(), place:
            async with within_deadline(context, begun), self._logits.hold(ids.size * self.vocabulary):
                logits, run_seconds = await self._forward(ids, lengths)
        waited = max(0.0, self._clock() - begun - run_seconds)
        self._observer.answered(Spent(queue_seconds=waited, run_seconds=run_seconds))
        return logits

    async def _forward(self, ids: Ids, lengths: Ids) -> tuple[Floats, float]:
        """The logits, and the seconds that it took to compute them."""
        logits, run_seconds, first = np.zeros((*ids.shape, self.vocabulary), np.float32), 0.0, 0
        for texts in groups([row[:length] for row, length in zip(ids, lengths, strict=True)], self._forward_tokens):
            parts = self._worker.parts(texts, self._forward_tokens)
            for start in range(0, max(map(len, texts)), self._forward_tokens):
                self._check_accepting()
                found, seconds = await self._worker.forward(parts)
                for row, part in zip(logits[first:, start:], found, strict=False):
                    await asyncio.to_thread(np.copyto, row[: len(part)], part)
                run_seconds += seconds
            first += len(texts)
        return logits, run_seconds

    def _stream(self, entrant: Entrant, sampling: Sampling, context: RequestContext) -> Stream:
        now = self._clock()
        context.check_deadline(now)
        ends = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends |= self._end_ids
        max_tokens = min(sampling.max_tokens, self.context_length - len(entrant.ids))
        return Stream(
            sequence=SequenceState(prompt=entrant.ids, max_tokens=max_tokens, context=context, arrived=now),
            draws=SamplingState(sampling, entrant.ids, vocabulary=self.vocabulary, end_ids=sorted(ends)),
            end_ids=frozenset(ends),
            take=entrant.take,
        )

    def check_length(self, field: str, tokens: int) -> None:
        """Raise InvalidRequest for a prompt that is empty, or leaves no room for a token of its continuation."""
        if not 1 <= tokens < self.context_length:
            raise InvalidRequest(field, f"{tokens} tokens", f"1 to {self.context_length - 1}")

    def _check_ids(self, field: str, ids: Ids) -> None:
        self.check_length(field, len(ids))
        if not 0 <= ids.min() <= ids.max() < self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0]
            raise InvalidRequest(field, f"token {wrong}", f"0 to {self.vocabulary - 1}")

    @contextmanager
    def _counting_refusals(self) -> Iterator[None]:
        try:
            yield
        except Overloaded:
            self._observer.refused("overloaded")
            raise

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise NotReady(f"{self.admission.name} is starting or being unloaded")


def groups(rows: Sequence[Ids], tokens: int) -> Iterator[list[Ids]]:
    """Rows in order, as many together as have at most so many tokens when padded to the longest; at least one."""
    group: list[Ids] = []
    for row in rows:
        if group and max(len(row), *map(len, group)) * (len(group) + 1) > tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def open_engine(
    session: Session,
    settings: ModelSettings,
    *,
    name: str,
    context_length: int,
    end_ids: Collection[int],
    device: int = 0,
    memory_limit: int | None = None,
    observer: Observer | None = None,
    in_flight: InFlight | None = None,
) -> Engine:
    """An engine over a session, as the settings say. `context_length` is the number of positions that the model knows.

    `memory_limit` is how many bytes of a GPU the cache may take. It has few slots at first, and more when they are
    needed. Raises NotEnoughMemory if that is more than there is room for.
    """
    capacity = min(settings.capacity or context_length, context_length)
    try:
        decoder = _decoder(session, settings, capacity=capacity, device=device, memory_limit=memory_limit)
    except NotEnoughMemory as error:
        raise NotEnoughMemory(f"{name}: {error} (--set {name}.slots=N, or a smaller {name}.capacity)") from error
    _tell_memory(name, decoder.cache)
    limits = Limits(
        requests=settings.max_queue_requests,
        tokens=settings.max_queue_tokens or settings.max_queue_requests * capacity,
    )
    chunk_tokens = settings.max_prefill_tokens or CHUNK_TOKENS.get(session.provider, CHUNK_TOKENS_ELSEWHERE)
    return Engine(
        decoder,
        admission=AdmissionQueue(name, limits),
        chunk_tokens=max(chunk_tokens, 3),
        forward_tokens=FORWARD_TOKENS.get(session.provider, FORWARD_TOKENS_ELSEWHERE),
        end_ids=end_ids,
        shared_tokens=SHARED_TOKENS if settings.prefix_cache else capacity,  # no two prompts share a whole slot
        observer=observer,
        in_flight=in_flight,
    )


def _decoder(
    session: Session, settings: ModelSettings, *, capacity: int, device: int, memory_limit: int | None
) -> Decoder:
    """A number of slots that somebody asked for must fit whole; the usual number is as many of them as fit."""
    most = settings.slots or SLOTS.get(session.provider, SLOTS_ELSEWHERE)
    memory = memory_of(session, device_id=device, limit=memory_limit)
    layout = layout_of(session, slots=most, max_slots=most, capacity=capacity)
    if settings.slots:
        check_room(layout, memory, slots=most, more=layout.bytes(most))
    most = max(1, min(most, room_in(memory) // layout.bytes(1)))
    layout = replace(layout, slots=min(most, SLOTS_AT_FIRST), max_slots=most)
    return decoder_of(session, layout, memory)


def _tell_memory(name: str, cache: SlotCache) -> None:
    layout = cache.layout
    log.info(
        "%s: %d slots of %d tokens, %s each: %s of keys and values at first, at most %s in %d slots",
        name,
        layout.slots,
        layout.capacity,
        megabytes(layout.bytes(1)),
        megabytes(layout.bytes(layout.slots)),
        megabytes(layout.bytes(layout.max_slots)),
        layout.max_slots,
    )
