"""Predicts the first and the last token of a new request, and refuses requests that would be too late. Pure."""

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from server.admission.pace import MEMORY_S, LatenessEstimate, Pace
from server.admission.queue import RequestContext
from server.errors import Overloaded
from server.generation.sequence import Decode, Prefill, SequenceState, Size


@dataclass(frozen=True)
class Load:
    """The work of an engine."""

    prefilling: Size | None
    decoding: Sequence[int]  # tokens that each sequence may still generate
    waiting: Sequence[Size]  # the sequences that run before a new one, in order
    max_slots: int
    chunk_tokens: int

    @property
    def idle(self) -> bool:
        return not (self.prefilling or self.decoding or self.waiting)


@dataclass(frozen=True)
class Prediction:
    """Of the last sequence of a request, in seconds from now."""

    first_s: float  # its first token
    finish_s: float  # its last token


class RoundTimes:
    """The time from one decode step to the next, by number of sequences (in powers of two)."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def record(self, sequences: int, seconds: float) -> None:
        size = sequences.bit_length()
        known = self._seconds.get(size, seconds)
        self._seconds[size] = seconds + math.exp(-seconds / MEMORY_S) * (known - seconds)

    def seconds(self, sequences: int) -> float:
        """The predicted time for this number of sequences: that of the nearest measured size; 0 before the first."""
        size = max(1, sequences).bit_length()
        nearest = min(self._seconds, key=lambda known: abs(known - size), default=None)
        return 0.0 if nearest is None else self._seconds[nearest]


class Forecast:
    """Learns the times of steps and the lengths of answers, and predicts with them."""

    def __init__(self, name: str, *, max_queue_s: float = math.inf) -> None:
        """Requests without a deadline wait for at most `max_queue_s` seconds."""
        self.max_queue_s = max_queue_s
        self.first_lateness, self.finish_lateness = LatenessEstimate(), LatenessEstimate()
        self._name = name
        self._prefill = Pace()
        self._decode, self._rounds = RoundTimes(), RoundTimes()
        self._length_share = 1.0  # generated tokens / max_tokens, on average
        self._last_decode: float | None = None  # when the last decode step ended, if there was no pause since

    def ran(self, step: Prefill | Decode, seconds: float, now: float) -> None:
        """A step has run."""
        if isinstance(step, Prefill):
            self._prefill.record(step.tokens, seconds, now)
            if step.last and step.sequence.predicted_first is not None:
                self.first_lateness.record(now - step.sequence.predicted_first)
            return
        count = len(step.sequences)
        self._decode.record(count, seconds)
        self._rounds.record(count, seconds if self._last_decode is None else now - self._last_decode)
        self._last_decode = now

    def paused(self) -> None:
        """There is nothing to run."""
        self._last_decode = None

    def ended(self, sequence: SequenceState, generated: int, now: float) -> None:
        """A sequence has generated its last token."""
        self._length_share += (generated / sequence.max_tokens - self._length_share) / 16
        if sequence.predicted_finish is not None:
            self.finish_lateness.record(now - sequence.predicted_finish)

    def prefill_seconds(self, tokens: int) -> float:
        """The predicted time of a prompt."""
        return self._prefill.seconds(tokens)

    def predict(self, load: Load, sequences: Iterable[Size]) -> Prediction:
        """When sequences that arrive now generate their first and last tokens."""
        own = list(sequences)
        count = min(load.max_slots, len(load.decoding) + len(load.waiting) + len(own) + bool(load.prefilling))
        round_s = self._rounds.seconds(count)
        decode_s = self._decode.seconds(len(load.decoding)) if load.decoding else 0.0
        free = [0.0] * (load.max_slots - len(load.decoding))  # seconds until each slot is free
        free += [tokens * self._length_share * round_s for tokens in load.decoding]
        heapq.heapify(free)
        first_s = finish_s = 0.0
        prefilling = [load.prefilling] if load.prefilling else []
        for size in [*prefilling, *load.waiting, *own]:
            start = heapq.heappop(free)
            runs = max(size.prompt_tokens / load.chunk_tokens, 0.25)  # between these, the others decode
            first_s = max(start, first_s) + self._prefill.seconds(size.prompt_tokens) + runs * decode_s
            finish_s = first_s + size.new_tokens * self._length_share * round_s
            heapq.heappush(free, finish_s)
        return Prediction(first_s, finish_s)

    def check(self, load: Load, sequences: Sequence[Size], context: RequestContext, now: float) -> Prediction:
        """The prediction for a request. Raises Overloaded if it is refused.

        It is refused if its first token would be too late. If an idle engine could finish it before the deadline, it is
        also refused if its last token would be too late. A request is accepted in any case while there is no other: it
        delays none, and its time shows the speed.
        """
        found = self.predict(load, sequences)
        if load.idle:
            return found
        left_s, limit = context.time_left(now, max_wait_s=self.max_queue_s)
        if context.deadline is None:
            late_s = found.first_s - left_s
        else:
            late_s = found.first_s + self.first_lateness.margin_s - left_s
            if self._alone_s(sequences) <= left_s:
                late_s = max(late_s, found.finish_s + self.finish_lateness.margin_s - left_s)
        if late_s > 0:
            raise Overloaded(
                f"{self._name} is overloaded: the first token would come in about {found.first_s:.1f} s and the last "
                f"in {found.finish_s:.1f} s, and {limit}",
                retry_after_s=late_s,
            )
        return found

    def _alone_s(self, sequences: Sequence[Size]) -> float:
        """The time of a request on an engine without other requests."""
        new_tokens = max(size.new_tokens for size in sequences)
        prompts_s = sum(self._prefill.seconds(size.prompt_tokens) for size in sequences)
        return prompts_s + new_tokens * self._length_share * self._decode.seconds(len(sequences))
