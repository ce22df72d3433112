"""Generation for the tasks: checks requests, queues them, and delivers their tokens.

Knows arrays and plain values only. The decisions are in scheduler.py, the work is in worker.py.
"""

import asyncio
import math
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from server.admission.deadline import within_deadline
from server.admission.in_flight import InFlight
from server.admission.queue import AdmissionQueue, RequestContext
from server.arrays import Floats, Ids
from server.concurrency.weighted_semaphore import WeightedSemaphore
from server.errors import InvalidRequest, NotReady
from server.generation.decoder import Decoder
from server.generation.forecast import Forecast
from server.generation.request import Sampling
from server.generation.runner import Runner
from server.generation.sampler import SamplingState
from server.generation.scheduler import Scheduler
from server.generation.sequence import SequenceState
from server.generation.stream import Stream, TokensPrompt
from server.generation.worker import Clock, StepWorker
from server.observability.observer import Observer, TimeSpent, counting_refusals

DEFAULT_FORWARD_TOKENS = 64  # of whole texts, with padding, in one run between two steps
MAX_LOGITS_IN_FLIGHT = 1 << 26  # numbers, in all results of `Engine.logits` that are being computed: 256 MiB
MIN_SHARED_TOKENS = 16  # a shorter common prefix of two prompts is processed again instead of copied


class Engine:
    """Generates for many requests at once. All methods must be called on one event loop.

    Each of the tokens `end_ids` ends a sequence. A common prefix of two prompts is processed only once if it has at
    least `min_shared_tokens` tokens.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        admission: AdmissionQueue,
        chunk_tokens: int,
        max_queue_s: float = math.inf,
        forward_tokens: int = DEFAULT_FORWARD_TOKENS,
        end_ids: Collection[int] = (),
        min_shared_tokens: int = MIN_SHARED_TOKENS,
        observer: Observer,
        in_flight: InFlight | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        layout = decoder.cache.layout
        self.context_length = layout.capacity  # tokens of a prompt and its continuation
        self.slots = layout.max_slots
        self.vocabulary = decoder.vocabulary
        self.admission = admission
        self._forward_tokens = forward_tokens
        self._logits = WeightedSemaphore(MAX_LOGITS_IN_FLIGHT)
        self._end_ids = frozenset(end_ids)
        self._observer, self._clock = observer, clock
        scheduler = Scheduler(
            admission,
            Forecast(admission.name, max_queue_s=max_queue_s),
            slots=layout.slots,
            max_slots=layout.max_slots,
            chunk_tokens=chunk_tokens,
            min_shared_tokens=min_shared_tokens,
            padded_batch_size=decoder.padded_batch_size,
        )
        self._worker = StepWorker(Runner(decoder), scheduler, observer=observer, clock=clock)
        self.in_flight = in_flight or InFlight(f"{admission.name} is being unloaded")
        self._accepting = False

    @property
    def waiting_inputs(self) -> int:
        return self.admission.inputs

    @property
    def waiting_tokens(self) -> int:
        return self.admission.tokens

    @property
    def running_inputs(self) -> int:
        return self._worker.running_inputs

    @property
    def predicted_wait_s(self) -> float:
        """The predicted time until the first token of a short prompt that arrives now."""
        return self._worker.predicted_wait_s

    async def start(self) -> None:
        """Warm up, and accept requests from then on."""
        await self._worker.warm_up()
        self._accepting = True

    async def drain(self) -> None:
        """Refuse new requests, and wait until all others are computed. Callers may still be reading their outputs."""
        self.in_flight.close()
        await self.in_flight.wait_idle()  # includes requests whose prompts are still being encoded
        self._accepting = False
        await self._worker.wait_idle()

    def abort(self) -> None:
        """Refuse new requests, and cancel all others."""
        self._accepting = False
        self._worker.cancel_all()

    @contextmanager
    def reserve(self, inputs: int, *, field: str) -> Iterator[None]:
        """Hold a share of the queue for the block, while the prompts of a request are encoded.

        Raises Overloaded, and InvalidRequest if the prompts can never fit.
        """
        with counting_refusals(self._observer), self._worker.reserve(inputs=inputs, tokens=0, field=field):
            yield

    @contextmanager
    def admit(
        self, prompts: Sequence[TokensPrompt], sampling: Sampling, context: RequestContext, *, field: str = "prompts"
    ) -> Iterator[None]:
        """Queue all prompts of a request, or none. On exit the sequences that have not ended are cancelled.

        The engine calls `on_output` of each prompt with one output per token, until an output has a `finish_reason` or
        the callback returns True. An error is the last output: DeadlineExceeded or StepFailed. If prompt and
        `max_tokens` together exceed the context length, the sequence ends there, with `finish_reason` "length".

        Raises InvalidRequest, Overloaded, NotReady, DeadlineExceeded.
        """
        self._check_accepting()
        sampling.check_vocabulary(self.vocabulary)
        for prompt in prompts:
            self._check_ids(prompt.name, prompt.ids)
        streams = [self._stream(prompt, sampling, context) for prompt in prompts]
        with counting_refusals(self._observer):
            self._worker.submit(*streams, field=field)
        try:
            yield
        finally:
            self._worker.cancel(*streams)

    async def logits(self, ids: Ids, lengths: Ids, context: RequestContext) -> Floats:
        """The logits (n, t, vocabulary) at the first `lengths` (n,) tokens of the rows of `ids` (n, t); 0 elsewhere.

        They are computed in chunks between the steps of generation. Raises InvalidRequest, Overloaded, NotReady,
        DeadlineExceeded, and the runtime's own error if a run fails.
        """
        self._check_accepting()
        arrived = self._clock()
        context.check_deadline(arrived)
        reservation = self._worker.reserve(inputs=len(ids), tokens=int(lengths.sum()), field="input_ids")
        with counting_refusals(self._observer), reservation:
            async with within_deadline(context, arrived), self._logits.hold(ids.size * self.vocabulary):
                logits, run_seconds = await self._forward(ids, lengths)
        waited = max(0.0, self._clock() - arrived - run_seconds)
        self._observer.answered(TimeSpent(queue_seconds=waited, run_seconds=run_seconds))
        return logits

    async def _forward(self, ids: Ids, lengths: Ids) -> tuple[Floats, float]:
        """The logits, and the seconds that the model ran for them."""
        logits, run_seconds, first = np.zeros((*ids.shape, self.vocabulary), np.float32), 0.0, 0
        texts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
        for batch in padded_batches(texts, self._forward_tokens):
            chunks = self._worker.chunks(batch, self._forward_tokens)
            for start in range(0, max(map(len, batch)), self._forward_tokens):
                self._check_accepting()
                chunk, seconds = await self._worker.forward(chunks)
                for target, found in zip(logits[first:, start:], chunk, strict=False):
                    await asyncio.to_thread(np.copyto, target[: len(found)], found)
                run_seconds += seconds
            first += len(batch)
        return logits, run_seconds

    def _stream(self, prompt: TokensPrompt, sampling: Sampling, context: RequestContext) -> Stream:
        now = self._clock()
        context.check_deadline(now)
        end_ids = set(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            end_ids |= self._end_ids
        max_tokens = min(sampling.max_tokens, self.context_length - len(prompt.ids))
        return Stream(
            sequence=SequenceState(prompt=prompt.ids, max_tokens=max_tokens, context=context, arrived=now),
            sampling_state=SamplingState(sampling, prompt.ids, vocabulary=self.vocabulary, end_ids=sorted(end_ids)),
            end_ids=frozenset(end_ids),
            on_output=prompt.on_output,
        )

    def check_length(self, field: str, tokens: int) -> None:
        """Raise InvalidRequest for a prompt that is empty, or so long that no token can follow."""
        if not 1 <= tokens < self.context_length:
            raise InvalidRequest(field, f"{tokens} tokens", f"1 to {self.context_length - 1}")

    def _check_ids(self, field: str, ids: Ids) -> None:
        self.check_length(field, len(ids))
        if not 0 <= ids.min() <= ids.max() < self.vocabulary:
            wrong = ids[(ids < 0) | (ids >= self.vocabulary)][0]
            raise InvalidRequest(field, f"token {wrong}", f"0 to {self.vocabulary - 1}")

    def _check_accepting(self) -> None:
        if not self._accepting:
            raise NotReady(f"{self.admission.name} is starting or being unloaded")


def padded_batches(texts: Sequence[Ids], max_tokens: int) -> Iterator[list[Ids]]:
    """The texts in order, in batches of at most `max_tokens` tokens with padding, and of at least one text."""
    batch: list[Ids] = []
    for text in texts:
        if batch and max(len(text), *map(len, batch)) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch
