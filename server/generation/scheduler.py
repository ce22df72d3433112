"""Which request runs next, and where its keys and values are. Pure: no clock, no thread, no tensor.

A request waits, then its prompt is read in chunks (prefill), then it gets a token in every decode step with all others:

    waiting ──► reading (one at a time) ──► decoding (all together) ──► gone
                slot n or above             slots [0, n), no holes

A request has its slot, and with it room for its prompt and all its tokens, from the moment it leaves the queue: nothing
is ever evicted. Between two decode steps at most `chunk_tokens` of prompts are read, in a few runs at most, and after
each decode step one chunk at least, so that neither those who stream nor those who wait stand still. What a prompt
shares with one that was read before is not read again (prefix.py).
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from server.admission.queue import AdmissionQueue, RequestContext
from server.arrays import Ids
from server.generation.prefix import Copy, Prefixes

MAX_PREFILLS = 4  # between two decode steps


@dataclass(eq=False, kw_only=True)
class SequenceState:
    """One request as the scheduler sees it: a prompt to read, then a token each step. Compared by identity."""

    prompt: Ids  # (t,)
    max_tokens: int  # prompt and these fit into a slot
    context: RequestContext
    arrived: float  # seconds, on the clock that `Scheduler.plan` is told
    slot: int = -1
    cached: int = 0  # tokens whose keys and values are in the slot
    reused: int = 0  # of these, tokens that another request had computed
    started: float = 0.0  # when it got its slot
    cancelled: bool = False

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)

    @property
    def read(self) -> Ids:
        """As much of the prompt as is in the slot."""
        return self.prompt[: self.cached]

    @property
    def reserved_tokens(self) -> int:
        return self.prompt_tokens + self.max_tokens


@dataclass(frozen=True)
class Prefill:
    """Read the tokens [start, stop) of one prompt."""

    kind: ClassVar = "prefill"
    sequence: SequenceState
    start: int
    stop: int

    @property
    def sequences(self) -> tuple[SequenceState, ...]:
        return (self.sequence,)

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def last(self) -> bool:
        return self.stop == self.sequence.prompt_tokens


@dataclass(frozen=True)
class Decode:
    """One token for each; `sequences[i]` is in slot i.

    The slots behind theirs that run along, idle, hold `idle` tokens that somebody needs: these must stay.
    """

    kind: ClassVar = "decode"
    sequences: tuple[SequenceState, ...]
    idle: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True)
class Plan:
    """What to do now, in this order: tell those who are gone, copy, run. Without a step there is nothing to do."""

    cancelled: tuple[SequenceState, ...] = ()
    expired: tuple[SequenceState, ...] = ()
    copies: tuple[Copy, ...] = ()
    step: Prefill | Decode | None = None


@dataclass
class Scheduler:
    """Decides each step. `plan`, then run it, then `advance`, then `finish` those that have ended; `plan` again."""

    admission: AdmissionQueue
    slots: int
    chunk_tokens: int
    shared_tokens: int = 16  # prompts that begin with as many equal tokens share their keys and values
    max_slots: int = 0  # as many as there may ever be; 0: as many as there are
    step_rows: Callable[[int], int] = int  # with how many rows a step runs for so many sequences
    waiting: list[tuple[float, int, SequenceState]] = field(default_factory=list)  # a heap: rank, order of arrival
    reading: SequenceState | None = None
    decoding: list[SequenceState] = field(default_factory=list)
    _arrivals: int = 0
    _read_since_decode: int = 0
    _look_again: float = math.inf  # when somebody may have to leave: the earliest deadline, or now after a cancellation

    def __post_init__(self) -> None:
        if self.slots < 1 or self.chunk_tokens < 3:
            raise ValueError(f"found {self.slots} slots, chunks of {self.chunk_tokens}, expected at least 1 and 3")
        self.max_slots = self.max_slots or self.slots
        self.prefixes = Prefixes(self.slots, least=self.shared_tokens)

    @property
    def idle(self) -> bool:
        return not (self.waiting or self.reading or self.decoding)

    @property
    def running(self) -> list[SequenceState]:
        """Those that have a slot."""
        return self.decoding + ([self.reading] if self.reading else [])

    @property
    def wanted_slots(self) -> int:
        """How many slots there should be, because somebody waits for one; 0 if there are enough, or cannot be more."""
        short = self.waiting and not self.reading and len(self.decoding) == self.slots < self.max_slots
        return min(2 * self.slots, self.max_slots) if short else 0

    def grow(self, slots: int) -> None:
        """There are more slots now."""
        self.slots = self.prefixes.slots = slots

    def submit(self, *sequences: SequenceState, field: str = "prompts") -> None:
        """Let all wait for their turns, or none. Overloaded; InvalidRequest if the queue can never hold them."""
        reserved = sum(sequence.reserved_tokens for sequence in sequences)
        self.admission.acquire(requests=len(sequences), tokens=reserved, field=field)
        for sequence in sequences:
            heapq.heappush(self.waiting, (sequence.context.rank(sequence.arrived), self._arrivals, sequence))
            self._arrivals += 1
            self._look_again = min(self._look_again, _deadline(sequence))

    def cancel(self, sequence: SequenceState) -> None:
        """It leaves at the next `plan`. Harmless if it is gone already."""
        sequence.cancelled = True
        self._look_again = -math.inf

    def plan(self, now: float) -> Plan:
        """Let go who is cancelled or out of time, let in who has waited longest, close the holes, choose the step."""
        cancelled, expired = self._leave(now)
        copies = (*self._close_holes(), *self._let_in(now))
        return Plan(cancelled=cancelled, expired=expired, copies=copies, step=self._choose())

    def advance(self, step: Prefill | Decode) -> None:
        """The step has run: its tokens are in the cache."""
        if isinstance(step, Decode):
            self._read_since_decode = 0
            for sequence in step.sequences:
                sequence.cached += 1
            return
        self._read_since_decode += self._cost(step.tokens)
        step.sequence.cached = step.stop
        if step.last:
            self.decoding.append(step.sequence)
            self.reading = None

    def finish(self, sequence: SequenceState) -> None:
        """It has its last token, or its caller is gone: its slot is free, and keeps the prompt."""
        self.fail(sequence)
        self.prefixes.keep(sequence.slot, sequence.read)

    def fail(self, sequence: SequenceState) -> None:
        """Its step failed: its slot is free, and what is in it good for nothing."""
        if sequence is self.reading:
            self.reading = None
        else:
            self.decoding.remove(sequence)

    def fail_all(self) -> None:
        """A copy failed: the contents of the slots are unknown."""
        self.reading, self.decoding = None, []
        self.prefixes.kept.clear()

    def clear(self) -> None:
        """Remove all waiting and running sequences."""
        for _, _, sequence in self.waiting:
            self.admission.release(requests=1, tokens=sequence.reserved_tokens)
        self.waiting, self._look_again = [], math.inf
        self.fail_all()

    # ---- the parts of a plan

    def _leave(self, now: float) -> tuple[tuple[SequenceState, ...], tuple[SequenceState, ...]]:
        if now < self._look_again:
            return (), ()
        everyone = [sequence for _, _, sequence in self.waiting] + self.running
        gone = {sequence for sequence in everyone if sequence.cancelled or sequence.context.expired(now)}
        for sequence in gone:
            if sequence.slot >= 0:
                self.finish(sequence)
            else:
                self.admission.release(requests=1, tokens=sequence.reserved_tokens)
        self.waiting = [entry for entry in self.waiting if entry[2] not in gone]
        heapq.heapify(self.waiting)
        self._look_again = min((_deadline(sequence) for sequence in everyone if sequence not in gone), default=math.inf)
        leavers = [sequence for sequence in everyone if sequence in gone]
        cancelled = tuple(sequence for sequence in leavers if sequence.cancelled)
        return cancelled, tuple(sequence for sequence in leavers if not sequence.cancelled)

    def _close_holes(self) -> list[Copy]:
        """Move those that decode into the slots [0, n). The slot of the prompt that is being read is n or above."""
        rows = len(self.decoding)
        taken = {sequence.slot for sequence in self.running}
        holes = [slot for slot in range(rows) if slot not in taken]
        copies = []
        for sequence, hole in zip([mover for mover in self.decoding if mover.slot >= rows], holes, strict=True):
            copies += self.prefixes.vacate(hole, taken.union(holes))
            copies.append(Copy(sequence.slot, hole, sequence.cached))
            sequence.slot = hole
        self.decoding.sort(key=lambda sequence: sequence.slot)
        return copies

    def _let_in(self, now: float) -> list[Copy]:
        """Give a slot to whoever's turn it is, with as much of the prompt as another slot holds already."""
        if self.reading or not self.waiting or len(self.decoding) == self.slots:
            return []
        sequence = heapq.heappop(self.waiting)[2]
        self.admission.release(requests=1, tokens=sequence.reserved_tokens, waited_s=now - sequence.arrived)
        sequence.slot = len(self.decoding)
        sequence.started = now
        running = [(other.slot, other.read) for other in self.decoding]
        source, shared = self.prefixes.best(sequence.prompt, running)
        copies = self.prefixes.vacate(sequence.slot, {source, *(slot for slot, _ in running)})
        if shared and source != sequence.slot:
            copies.append(Copy(source, sequence.slot, shared))
        sequence.cached = sequence.reused = shared
        self.reading = sequence
        return copies

    def _choose(self) -> Prefill | Decode | None:
        if self.reading:
            start = self.reading.cached
            stop = start + chunk_length(self.reading.prompt_tokens - start, self.chunk_tokens)
            enough = self._read_since_decode and self._read_since_decode + self._cost(stop - start) > self.chunk_tokens
            if not (self.decoding and enough):
                return Prefill(self.reading, start, stop)
        if not self.decoding:
            return None
        rows = len(self.decoding)
        return Decode(tuple(self.decoding), tuple(map(self._held, range(rows, self.step_rows(rows)))))

    def _cost(self, tokens: int) -> int:
        """Of a run over so many tokens, in tokens: it has to read all weights, be they ever so few."""
        return max(tokens, self.chunk_tokens // MAX_PREFILLS)

    def _held(self, slot: int) -> int:
        """The number of tokens that are still needed of a slot that does not decode."""
        if self.reading and self.reading.slot == slot:
            return self.reading.cached
        return len(self.prefixes.kept[slot].prompt) if slot in self.prefixes.kept else 0


def _deadline(sequence: SequenceState) -> float:
    return math.inf if sequence.context.deadline is None else sequence.context.deadline


def chunk_length(remaining: int, longest: int) -> int:
    """How many of the remaining tokens of a prompt to read at once. Never leaves a single one.

    One token alone is computed by other kernels than several and comes out different in the last bits.
    """
    length = min(remaining, longest)
    return length - 1 if remaining - length == 1 else length
