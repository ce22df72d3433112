"""What must hold on any day of work: requests come, leave and fail, prompts are shared, slots become more.

The scheduler's plans run on imaginary slots that hold tokens where real ones hold keys and values, so that what it
believes to be in a slot can be compared with what is there.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from server.admission.queue import DEFAULT_PRIORITY, SECONDS_PER_PRIORITY, Limits
from server.errors import Overloaded
from server.generation.scheduler import Decode, Plan, Prefill, Scheduler, SequenceState
from tests.server.generation.test_scheduler import NEVER_SEEN, PLENTY, request, scheduler

PATIENTLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no error
STEP_SECONDS = 0.5
LONGEST_PROMPT, MOST_TOKENS = 40, 12
CAPACITY = LONGEST_PROMPT + MOST_TOKENS  # tokens of a slot
JUNK = -1  # what an idle row leaves behind


@dataclass
class Day:
    """A scheduler at work, and what must hold before each step."""

    plans: Scheduler
    slots: dict[int, list[int]] = field(default_factory=dict)  # the tokens whose keys and values are in each
    made: dict[SequenceState, list[int]] = field(default_factory=dict)
    now: float = 0.0
    steps: list[Prefill | Decode] = field(default_factory=list)
    got_slot: dict[SequenceState, int] = field(default_factory=dict)  # after how many steps
    got_token: dict[SequenceState, int] = field(default_factory=dict)  # its first
    ended: dict[SequenceState, int] = field(default_factory=dict)

    def step(self) -> bool:
        """Run what is planned; False if nothing is."""
        if plan := self.plan():
            self.copy(plan)
            self.run(plan.step)
        return plan is not None

    def fail_step(self) -> None:
        """The step that is planned fails: what it should have written is anything."""
        if plan := self.plan():
            self.copy(plan)
            self.check(plan.step)
            self.spoil_idle(plan.step)
            for sequence in plan.step.sequences:
                self.slots[sequence.slot] = []
                self.plans.fail(sequence)
            self.end(plan.step.sequences)

    def fail_copies(self) -> None:
        """The copies that are planned fail, if there are any: nobody knows what is where."""
        if plan := self.plan():
            if not plan.copies:
                self.run(plan.step)
                return
            event("copies failed")
            gone = self.plans.running
            self.plans.fail_all()
            self.slots.clear()
            self.end(gone)

    def grow(self) -> None:
        """There is memory for more slots, if anybody wants them."""
        if wanted := self.plans.wanted_slots:
            assert len(self.plans.running) == self.plans.slots < wanted <= self.plans.max_slots
            event("grew")
            self.plans.grow(wanted)

    # ---- the parts of a step

    def plan(self) -> Plan | None:
        plan = self.plans.plan(self.now)
        self.end([*plan.cancelled, *plan.expired])
        self.check_commitments()
        self.now += STEP_SECONDS
        assert (plan.step is None) == self.plans.idle, "work that is not done, or done for nobody"
        for sequence in self.plans.running:
            self.got_slot.setdefault(sequence, len(self.steps))
        return plan if plan.step else None

    def copy(self, plan: Plan) -> None:
        for copy in plan.copies:
            assert len(self.slots[copy.source]) >= copy.tokens
            assert max(copy.source, copy.target) < self.plans.slots
            self.slots[copy.target] = self.slots[copy.source][: copy.tokens]
        self.check_kept_prompts()

    def run(self, step: Prefill | Decode) -> None:
        self.check(step)
        self.spoil_idle(step)
        self.steps.append(step)
        for sequence in step.sequences:
            held, written = self.slots.get(sequence.slot, []), self.written(step, sequence)
            self.slots[sequence.slot] = [*held[: sequence.computed_tokens], *written]
            assert len(self.slots[sequence.slot]) <= CAPACITY
        self.plans.advance(step)
        if isinstance(step, Decode) or step.last:
            for sequence in step.sequences:
                self.give_token(sequence)

    def written(self, step: Prefill | Decode, sequence: SequenceState) -> list[int]:
        if isinstance(step, Decode):
            return [self.made[sequence][-1]]
        return sequence.prompt[step.start : step.stop].tolist()

    def spoil_idle(self, step: Prefill | Decode) -> None:
        """Rows that run along write behind what they are said to hold."""
        if isinstance(step, Decode):
            for slot, held in enumerate(step.idle, start=len(step.sequences)):
                event("an idle row behind something" if held else "an idle row")
                self.slots[slot] = [*self.slots.get(slot, [])[:held], JUNK]
                assert len(self.slots[slot]) == held + 1 <= CAPACITY

    def give_token(self, sequence: SequenceState) -> None:
        made = self.made.setdefault(sequence, [])
        made.append(next(NEVER_SEEN))
        self.got_token.setdefault(sequence, len(self.steps))
        if len(made) == sequence.max_tokens:
            self.plans.finish(sequence)
            self.end([sequence])

    def end(self, sequences: Iterable[SequenceState]) -> None:
        for sequence in sequences:
            assert sequence not in self.ended, "it ended twice"
            self.ended[sequence] = len(self.steps)

    # ---- what must hold

    def check_commitments(self) -> None:
        """Nobody shares a slot or outgrows it, who should leave has left, the queue counts exactly those who wait."""
        running, waiting = self.plans.running, [sequence for _, _, sequence in self.plans.waiting]
        assert not {*running, *waiting}.intersection(self.ended)
        assert not any(sequence.cancelled or sequence.context.expired(self.now) for sequence in (*running, *waiting))
        assert len({sequence.slot for sequence in running}) == len(running) <= self.plans.slots
        assert all(0 <= sequence.slot < self.plans.slots for sequence in running)
        assert all(sequence.computed_tokens < sequence.reserved_tokens for sequence in running)
        admission = self.plans.admission
        assert admission.requests == len(waiting) <= admission.limits.requests
        assert admission.tokens == sum(sequence.reserved_tokens for sequence in waiting) <= admission.limits.tokens

    def check_kept_prompts(self) -> None:
        """What is kept for others is in a slot where nobody runs, and is what it is said to be."""
        used = {sequence.slot for sequence in self.plans.running}
        for slot, entry in self.plans.prefix_cache.entries.items():
            assert slot not in used
            assert slot < self.plans.slots
            assert self.slots[slot][: len(entry.prompt)] == entry.prompt.tolist()

    def check(self, step: Prefill | Decode) -> None:
        for sequence in step.sequences:
            whole = [*sequence.prompt.tolist(), *self.made.get(sequence, [])]
            assert self.slots.get(sequence.slot, [])[: sequence.computed_tokens] == whole[: sequence.computed_tokens]
        (self.check_decode if isinstance(step, Decode) else self.check_prefill)(step)

    def check_decode(self, step: Decode) -> None:
        rows = len(step.sequences)
        assert rows, "an empty batch kills the process"
        assert [sequence.slot for sequence in step.sequences] == list(range(rows))
        assert rows + len(step.idle) == self.plans.padded_batch_size(rows) <= self.plans.slots
        stalled = self.plans.prefilling and self.steps and isinstance(self.steps[-1], Decode)
        assert not stalled, "a prompt stands still"

    def check_prefill(self, step: Prefill) -> None:
        assert 0 < step.tokens <= self.plans.chunk_tokens
        assert step.tokens > 1 or step.sequence.prompt_tokens == 1, "one token alone comes out different"
        assert step.start == step.sequence.computed_tokens
        assert step.sequence.slot >= len(self.plans.decoding), "it would be in the way of those that decode"


def powers_of_two(plans: Scheduler):
    """The numbers of rows for which a GPU has captured steps."""
    return lambda rows: min(1 << (rows - 1).bit_length(), plans.slots)


def long_lists(elements, most: int):
    """Of any length alike: left alone, most lists that are drawn are short."""
    return st.integers(0, most).flatmap(lambda size: st.lists(elements, min_size=size, max_size=size))


PROMPTS = st.integers(1, LONGEST_PROMPT) | st.lists(st.integers(1, 2), min_size=1, max_size=20)  # these often share
TOKENS = st.integers(1, MOST_TOKENS)
REQUESTS = st.tuples(PROMPTS, TOKENS, st.integers(0, 10), st.sampled_from([None, None, 2.0, 20.0]))
HAPPENINGS = ["step"] * 6 + ["cancel", "grow", "fail_step", "fail_copies"]
HOURS = st.tuples(st.lists(REQUESTS, max_size=4), st.sampled_from(HAPPENINGS), st.integers(0, 100), st.integers(0, 4))


@settings(PATIENTLY, max_examples=300)
@given(
    slots=st.integers(1, 6),
    more_slots=st.integers(0, 6),
    chunk_tokens=st.integers(3, 16),
    captured=st.booleans(),
    limits=st.just(PLENTY) | st.builds(Limits, requests=st.integers(1, 9), tokens=st.integers(CAPACITY, 400)),
    hours=long_lists(HOURS, 25),
)
def test_every_request_ends_exactly_once_and_nothing_is_over_committed(
    slots, more_slots, chunk_tokens, captured, limits, hours
):
    day = Day(scheduler(slots=slots, chunk_tokens=chunk_tokens, limits=limits, max_slots=slots + more_slots))
    if captured:
        day.plans.padded_batch_size = powers_of_two(day.plans)
    sequences: list[SequenceState] = []
    for requests, happening, number, steps in hours:
        for prompt, tokens, priority, seconds in requests:
            deadline = None if seconds is None else day.now + seconds
            sequence = request(prompt, tokens, arrived=day.now, priority=priority, deadline=deadline)
            with suppress(Overloaded):
                day.plans.submit(sequence)
                sequences.append(sequence)
        if happening != "cancel":
            getattr(day, happening)()
        elif sequences:
            day.plans.cancel(sequences[number % len(sequences)])
        for _ in range(steps):
            day.step()
    while day.step():
        pass
    assert set(day.ended) == set(sequences)
    assert day.plans.admission.requests == day.plans.admission.tokens == day.plans.wanted_slots == 0
    assert day.plans.plan(day.now) == Plan()


def turn(sequence: SequenceState) -> float:
    """When its turn is: a level of priority is worth having come so many seconds earlier."""
    return sequence.arrived + SECONDS_PER_PRIORITY * (sequence.context.priority or DEFAULT_PRIORITY)


LEAVES = st.none() | st.integers(0, 100)  # somebody who came before
ARRIVALS = st.tuples(st.integers(0, 4), st.integers(1, LONGEST_PROMPT), TOKENS, st.integers(0, 10), LEAVES)


@settings(PATIENTLY, max_examples=200)
@given(slots=st.integers(1, 5), chunk_tokens=st.integers(3, 16), arrivals=long_lists(ARRIVALS, 40))
def test_nobody_waits_longer_than_the_work_of_those_whose_turn_is_before_takes(slots, chunk_tokens, arrivals):
    day, came = Day(scheduler(slots=slots, chunk_tokens=chunk_tokens)), {}
    for steps, prompt, tokens, priority, leaves in arrivals:
        for _ in range(steps):
            day.step()
        sequence = request(prompt, tokens, arrived=day.now, priority=priority)
        day.plans.submit(sequence)
        came[sequence] = len(day.steps)
        if leaves is not None:
            day.plans.cancel(list(came)[leaves % len(came)])
    while day.step():
        pass
    turns = {sequence: (turn(sequence), number) for number, sequence in enumerate(came)}
    for sequence in day.got_token:
        waited = day.got_token[sequence] - came[sequence]
        others = [other for other in came if other is not sequence and day.ended[other] > came[sequence]]
        before = [
            other
            for other in others
            if day.got_slot.get(other, math.inf) < came[sequence] or turns[other] < turns[sequence]
        ]
        overtaken_by = set(others).difference(before).intersection(day.got_token)
        assert all(day.got_token[other] > day.got_token[sequence] for other in overtaken_by), "not in turn"
        chunks = sum(-(-each.prompt_tokens // (chunk_tokens - 1)) for each in (*before, sequence))
        full_steps = sum(other.max_tokens for other in before) // slots
        assert waited <= 2 * chunks + 1 + full_steps
    assert all(sequence in day.got_token or sequence.cancelled for sequence in came)


@settings(PATIENTLY)
@given(prompts=long_lists(st.integers(1, LONGEST_PROMPT), 20))
def test_a_stream_waits_for_one_chunk_of_tokens_at_most(prompts):
    day = Day(scheduler(slots=8, chunk_tokens=8))
    day.plans.submit(stream := request(prompt=2, tokens=CAPACITY - 2))
    day.step()
    for prompt in prompts:
        day.plans.submit(request(prompt, tokens=3))
    while stream not in day.ended:
        day.step()
    between = 0
    for step in day.steps[1:]:
        between = 0 if isinstance(step, Decode) else between + step.tokens
        assert between <= 8
