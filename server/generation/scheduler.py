"""Decides which request runs next, and which cache slot it uses. Pure: no clock, no thread, no tensor.

A request waits, then its prompt is processed in chunks (prefill), then every decode step generates one of its tokens:

    waiting ──► prefilling (one at a time) ──► decoding (all together) ──► ended
                slot n or above                slots [0, n), without gaps

A request gets its slot, with space for its prompt and `max_tokens`, when it leaves the queue, so no request is ever
evicted. Between two decode steps at most `chunk_tokens` prompt tokens are processed, in at most MAX_PREFILLS runs;
after every decode step at least one chunk is. So prompts do not stall decoding, and decoding does not stall prompts. A
prompt prefix that an earlier prompt had in common is copied instead of being processed again (prefix.py).
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from server.admission.queue import AdmissionQueue
from server.generation.forecast import Forecast, Load
from server.generation.prefix import Copy, PrefixCache
from server.generation.sequence import Decode, Plan, Prefill, SequenceState

MAX_PREFILLS = 4  # between two decode steps


@dataclass
class Scheduler:
    """Decides each step. Call `plan`, run the step, call `advance`, call `finish` for each ended sequence; repeat."""

    admission: AdmissionQueue
    forecast: Forecast
    slots: int
    chunk_tokens: int
    min_shared_tokens: int = 16  # a shorter common prefix is not copied
    max_slots: int = 0  # the limit of `grow`; 0: the initial number of slots
    padded_batch_size: Callable[[int], int] = int  # rows of a decode step, by number of sequences
    waiting: list[tuple[float, int, SequenceState]] = field(default_factory=list)  # a heap: rank, order of arrival
    prefilling: SequenceState | None = None
    decoding: list[SequenceState] = field(default_factory=list)
    _arrivals: int = 0
    _prefilled_since_decode: int = 0  # tokens
    _next_removal: float = math.inf  # when a sequence may have to go: the earliest deadline, or now after `cancel`

    def __post_init__(self) -> None:
        if self.slots < 1 or self.chunk_tokens < 3:
            raise ValueError(f"found {self.slots} slots, chunks of {self.chunk_tokens}, expected at least 1 and 3")
        self.max_slots = self.max_slots or self.slots
        self.prefix_cache = PrefixCache(self.slots, min_tokens=self.min_shared_tokens)

    @property
    def running(self) -> list[SequenceState]:
        """The sequences that have a slot."""
        return self.decoding + ([self.prefilling] if self.prefilling else [])

    @property
    def wanted_slots(self) -> int:
        """The number of slots to grow to, because a request waits for one. 0: enough slots, or no more possible."""
        short = self.waiting and not self.prefilling and len(self.decoding) == self.slots < self.max_slots
        return min(2 * self.slots, self.max_slots) if short else 0

    def grow(self, slots: int) -> None:
        """Use the new slots of a cache that has grown to `slots` slots."""
        self.slots = self.prefix_cache.slots = slots

    def submit(self, *sequences: SequenceState, field: str = "prompts") -> None:
        """Queue all sequences of a request, or none.

        Raises InvalidRequest if they can never fit into the queue; Overloaded if they do not fit now, or are predicted
        to be too late.
        """
        reserved = sum(sequence.reserved_tokens for sequence in sequences)
        self.admission.limits.check(inputs=len(sequences), tokens=reserved, field=field)
        context, now = sequences[0].context, sequences[0].arrived
        sizes = [sequence.remaining for sequence in sequences]
        predicted = self.forecast.check(self.load(context.rank(now)), sizes, context, now)
        self.admission.acquire(inputs=len(sequences), tokens=reserved, field=field)
        if len(sequences) == 1:
            sequences[0].predicted_first = now + predicted.first_s
            sequences[0].predicted_finish = now + predicted.finish_s
        for sequence in sequences:
            heapq.heappush(self.waiting, (sequence.context.rank(sequence.arrived), self._arrivals, sequence))
            self._arrivals += 1
            self._next_removal = min(self._next_removal, self._removal_time(sequence))

    def cancel(self, sequence: SequenceState) -> None:
        """Remove the sequence at the next `plan`. Has no effect on a sequence that has ended."""
        sequence.cancelled = True
        self._next_removal = -math.inf

    def plan(self, now: float) -> Plan:
        """Remove cancelled and expired sequences, close gaps, start the first waiting sequence, choose the step."""
        cancelled, expired, refused = self._remove_late(now)
        copies = (*self._close_gaps(), *self._start_next(now))
        return Plan(cancelled=cancelled, expired=expired, refused=refused, copies=copies, step=self._choose_step())

    def advance(self, step: Prefill | Decode) -> None:
        """The step has run: the keys and values of its tokens are in the cache."""
        if isinstance(step, Decode):
            self._prefilled_since_decode = 0
            for sequence in step.sequences:
                sequence.computed_tokens += 1
            return
        self._prefilled_since_decode += self._prefill_cost(step.tokens)
        step.sequence.computed_tokens = step.stop
        if step.last:
            self.decoding.append(step.sequence)
            self.prefilling = None

    def finish(self, sequence: SequenceState) -> None:
        """The sequence has its last token, or was removed: free its slot, and keep the prompt for later requests."""
        self._free_slot(sequence)
        self.prefix_cache.keep(sequence.slot, sequence.computed_prompt)

    def fail(self, sequence: SequenceState) -> None:
        """A step of the sequence failed: free its slot, whose contents are invalid."""
        self._free_slot(sequence)

    def _free_slot(self, sequence: SequenceState) -> None:
        if sequence is self.prefilling:
            self.prefilling = None
        else:
            self.decoding.remove(sequence)

    def fail_all(self) -> None:
        """A copy failed: free all slots, because their contents are unknown."""
        self.prefilling, self.decoding = None, []
        self.prefix_cache.entries.clear()

    def clear(self) -> None:
        """Remove all waiting and running sequences."""
        for _, _, sequence in self.waiting:
            self.admission.release(inputs=1, tokens=sequence.reserved_tokens)
        self.waiting, self._next_removal = [], math.inf
        self.fail_all()

    # ---- the parts of a plan

    def _remove_late(self, now: float) -> tuple[tuple[SequenceState, ...], ...]:
        """Remove the cancelled sequences, those whose deadline has passed, and those that have waited for too long."""
        if now < self._next_removal:
            return (), (), ()
        sequences = [sequence for _, _, sequence in self.waiting] + self.running
        cancelled = [sequence for sequence in sequences if sequence.cancelled]
        others = [sequence for sequence in sequences if not sequence.cancelled]
        expired = [sequence for sequence in others if sequence.context.expired(now)]
        others = [sequence for sequence in others if not sequence.context.expired(now)]
        several = len({id(sequence.context) for sequence in others}) > 1  # requests; a single one may try
        refused = [sequence for sequence in others if several and now >= self._removal_time(sequence)]
        for sequence in (*cancelled, *expired, *refused):
            if sequence.slot >= 0:
                self.finish(sequence)
            else:
                self.admission.release(inputs=1, tokens=sequence.reserved_tokens)
        kept = set(others).difference(refused)
        self.waiting = [entry for entry in self.waiting if entry[2] in kept]
        heapq.heapify(self.waiting)
        self._next_removal = min((max(now, self._removal_time(sequence)) for sequence in kept), default=math.inf)
        return tuple(cancelled), tuple(expired), tuple(refused)

    def _removal_time(self, sequence: SequenceState) -> float:
        """When a sequence is removed unless it has ended, or started, before."""
        context = sequence.context
        if sequence.slot >= 0:
            return math.inf if context.deadline is None else context.deadline
        if context.deadline is None:
            return sequence.arrived + self.forecast.max_queue_s
        return min(context.deadline, context.answer_by - self.forecast.prefill_seconds(sequence.prompt_tokens))

    def load(self, rank: float = math.inf) -> Load:
        """The work that runs before a request of this rank."""
        waiting = sorted(entry for entry in self.waiting if entry[0] <= rank)
        return Load(
            prefilling=self.prefilling.remaining if self.prefilling else None,
            decoding=[sequence.remaining.new_tokens for sequence in self.decoding],
            waiting=[sequence.remaining for _, _, sequence in waiting],
            max_slots=self.max_slots,
            chunk_tokens=self.chunk_tokens,
        )

    def _close_gaps(self) -> list[Copy]:
        """Move the decoding sequences into the slots [0, n). The slot of the sequence in prefill is n or above."""
        count = len(self.decoding)
        used = {sequence.slot for sequence in self.running}
        gaps = [slot for slot in range(count) if slot not in used]
        copies = []
        for sequence, gap in zip([mover for mover in self.decoding if mover.slot >= count], gaps, strict=True):
            copies += self.prefix_cache.vacate(gap, used.union(gaps))
            copies.append(Copy(sequence.slot, gap, sequence.computed_tokens))
            sequence.slot = gap
        self.decoding.sort(key=lambda sequence: sequence.slot)
        return copies

    def _start_next(self, now: float) -> list[Copy]:
        """Give a slot to the first waiting sequence, with the longest prefix of its prompt that another slot holds."""
        if self.prefilling or not self.waiting or len(self.decoding) == self.slots:
            return []
        sequence = heapq.heappop(self.waiting)[2]
        self.admission.release(inputs=1, tokens=sequence.reserved_tokens, waited_s=now - sequence.arrived)
        sequence.slot = len(self.decoding)
        sequence.started = now
        running = [(other.slot, other.computed_prompt) for other in self.decoding]
        source, shared = self.prefix_cache.longest_match(sequence.prompt, running)
        copies = self.prefix_cache.vacate(sequence.slot, {source, *(slot for slot, _ in running)})
        if shared and source != sequence.slot:
            copies.append(Copy(source, sequence.slot, shared))
        sequence.computed_tokens = sequence.cached_tokens = shared
        self.prefilling = sequence
        return copies

    def _choose_step(self) -> Prefill | Decode | None:
        if self.prefilling:
            start = self.prefilling.computed_tokens
            stop = start + chunk_length(self.prefilling.prompt_tokens - start, self.chunk_tokens)
            done = self._prefilled_since_decode
            enough = done and done + self._prefill_cost(stop - start) > self.chunk_tokens
            if not (self.decoding and enough):
                return Prefill(self.prefilling, start, stop)
        if not self.decoding:
            return None
        count = len(self.decoding)
        return Decode(
            tuple(self.decoding), tuple(map(self._tokens_to_keep, range(count, self.padded_batch_size(count))))
        )

    def _prefill_cost(self, tokens: int) -> int:
        """The cost of a prefill, in tokens. Even a short run has to read all weights."""
        return max(tokens, self.chunk_tokens // MAX_PREFILLS)

    def _tokens_to_keep(self, slot: int) -> int:
        """The number of tokens that are still needed of a slot that does not decode."""
        if self.prefilling and self.prefilling.slot == slot:
            return self.prefilling.computed_tokens
        entry = self.prefix_cache.entries.get(slot)
        return len(entry.prompt) if entry else 0


def chunk_length(remaining: int, max_tokens: int) -> int:
    """The length of the next chunk of a prompt. Never leaves a single token for the last chunk.

    Other kernels compute a single token than several, and their results differ in the last bits.
    """
    length = min(remaining, max_tokens)
    return length - 1 if remaining - length == 1 else length
