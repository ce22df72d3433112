"""Properties of the scheduler under any sequence of arrivals, cancellations, failures and growth.

The plans run on simulated slots, which hold tokens where real ones hold keys and values, so that the scheduler's view
of a slot can be compared with its contents.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import event, given, settings
from hypothesis import strategies as st

from server.admission.queue import DEFAULT_PRIORITY, SECONDS_PER_PRIORITY, Limits
from server.errors import Overloaded
from server.generation.scheduler import Scheduler
from server.generation.sequence import Decode, Plan, Prefill, SequenceState
from tests.server.generation.test_scheduler import PLENTY, UNIQUE_TOKENS, request, scheduler

STEP_SECONDS = 0.5
LONGEST_PROMPT, MAX_TOKENS = 40, 12
CAPACITY = LONGEST_PROMPT + MAX_TOKENS  # of a slot, in tokens
PADDING_TOKEN = -1  # written by an idle row


@dataclass
class Simulation:
    """Runs the plans of a scheduler, and checks its invariants before each step."""

    plans: Scheduler
    slots: dict[int, list[int]] = field(default_factory=dict)  # the tokens in each slot
    generated: dict[SequenceState, list[int]] = field(default_factory=dict)
    now: float = 0.0
    steps: list[Prefill | Decode] = field(default_factory=list)
    got_slot: dict[SequenceState, int] = field(default_factory=dict)  # by the number of steps before
    got_token: dict[SequenceState, int] = field(default_factory=dict)  # the first
    ended: dict[SequenceState, int] = field(default_factory=dict)

    def step(self) -> bool:
        """Plan and run a step. False if there is none."""
        if plan := self.plan():
            self.copy(plan)
            self.run(plan.step)
        return plan is not None

    def fail_step(self) -> None:
        """Plan a step that fails: the contents of its slots become invalid."""
        if plan := self.plan():
            self.copy(plan)
            self.check(plan.step)
            self.write_idle(plan.step)
            for sequence in plan.step.sequences:
                self.slots[sequence.slot] = []
                self.plans.fail(sequence)
            self.end(plan.step.sequences)

    def fail_copies(self) -> None:
        """Plan a step whose copies fail, if it has any: the contents of all slots become invalid."""
        if plan := self.plan():
            if not plan.copies:
                self.run(plan.step)
                return
            event("copies failed")
            failed = self.plans.running
            self.plans.fail_all()
            self.slots.clear()
            self.end(failed)

    def grow(self) -> None:
        """Grow the cache, if the scheduler wants more slots."""
        if wanted := self.plans.wanted_slots:
            assert len(self.plans.running) == self.plans.slots < wanted <= self.plans.max_slots
            event("grew")
            self.plans.grow(wanted)

    # ---- the parts of a step

    def plan(self) -> Plan | None:
        plan = self.plans.plan(self.now)
        self.end([*plan.cancelled, *plan.expired])
        self.check_sequences()
        self.now += STEP_SECONDS
        assert bool(plan.step) == bool(self.plans.waiting or self.plans.running), (
            "idle although there is work, or a step without work"
        )
        for sequence in self.plans.running:
            self.got_slot.setdefault(sequence, len(self.steps))
        return plan if plan.step else None

    def copy(self, plan: Plan) -> None:
        for copy in plan.copies:
            assert len(self.slots[copy.source]) >= copy.tokens
            assert max(copy.source, copy.target) < self.plans.slots
            self.slots[copy.target] = self.slots[copy.source][: copy.tokens]
        self.check_cached_prompts()

    def run(self, step: Prefill | Decode) -> None:
        self.check(step)
        self.write_idle(step)
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
            return [self.generated[sequence][-1]]
        return sequence.prompt[step.start : step.stop].tolist()

    def write_idle(self, step: Prefill | Decode) -> None:
        """Idle rows write one token after those that they must keep."""
        if isinstance(step, Decode):
            for slot, kept in enumerate(step.kept_tokens, start=len(step.sequences)):
                event("an idle row after kept tokens" if kept else "an idle row")
                self.slots[slot] = [*self.slots.get(slot, [])[:kept], PADDING_TOKEN]
                assert len(self.slots[slot]) == kept + 1 <= CAPACITY

    def give_token(self, sequence: SequenceState) -> None:
        generated = self.generated.setdefault(sequence, [])
        generated.append(next(UNIQUE_TOKENS))
        self.got_token.setdefault(sequence, len(self.steps))
        if len(generated) == sequence.max_tokens:
            self.plans.finish(sequence)
            self.end([sequence])

    def end(self, sequences: Iterable[SequenceState]) -> None:
        for sequence in sequences:
            assert sequence not in self.ended, "a sequence ended twice"
            self.ended[sequence] = len(self.steps)

    # ---- invariants

    def check_sequences(self) -> None:
        """Slots are not shared or exceeded, removals are complete, and the queue counts the waiting sequences."""
        running, waiting = self.plans.running, [sequence for _, _, sequence in self.plans.waiting]
        assert not {*running, *waiting}.intersection(self.ended)
        assert not any(sequence.cancelled or sequence.context.expired(self.now) for sequence in (*running, *waiting))
        assert len({sequence.slot for sequence in running}) == len(running) <= self.plans.slots
        assert all(0 <= sequence.slot < self.plans.slots for sequence in running)
        assert all(sequence.computed_tokens < sequence.reserved_tokens for sequence in running)
        admission = self.plans.admission
        assert admission.inputs == len(waiting) <= admission.limits.inputs
        assert admission.tokens == sum(sequence.reserved_tokens for sequence in waiting) <= admission.limits.tokens

    def check_cached_prompts(self) -> None:
        """Cached prompts are in idle slots, which contain their tokens."""
        used = {sequence.slot for sequence in self.plans.running}
        for slot, entry in self.plans.prefix_cache.entries.items():
            assert slot not in used
            assert slot < self.plans.slots
            assert self.slots[slot][: len(entry.prompt)] == entry.prompt.tolist()

    def check(self, step: Prefill | Decode) -> None:
        for sequence in step.sequences:
            whole = [*sequence.prompt.tolist(), *self.generated.get(sequence, [])]
            assert self.slots.get(sequence.slot, [])[: sequence.computed_tokens] == whole[: sequence.computed_tokens]
        (self.check_decode if isinstance(step, Decode) else self.check_prefill)(step)

    def check_decode(self, step: Decode) -> None:
        count = len(step.sequences)
        assert count, "an empty batch"
        assert [sequence.slot for sequence in step.sequences] == list(range(count))
        assert count + len(step.kept_tokens) == self.plans.padded_batch_size(count) <= self.plans.slots
        stalled = self.plans.prefilling and self.steps and isinstance(self.steps[-1], Decode)
        assert not stalled, "a decode step although a prompt waits for its turn"

    def check_prefill(self, step: Prefill) -> None:
        assert 0 < step.tokens <= self.plans.chunk_tokens
        assert step.tokens > 1 or step.sequence.prompt_tokens == 1, "a chunk of a single token"
        assert step.start == step.sequence.computed_tokens
        assert step.sequence.slot >= len(self.plans.decoding), "the slot is needed for decoding"


def powers_of_two(plans: Scheduler):
    """The batch sizes of CUDA graphs."""
    return lambda sequences: min(1 << (sequences - 1).bit_length(), plans.slots)


def long_lists(elements, max_size: int):
    """Lists whose lengths are uniform; those of `st.lists` are mostly short."""
    return st.integers(0, max_size).flatmap(lambda size: st.lists(elements, min_size=size, max_size=size))


PROMPTS = st.integers(1, LONGEST_PROMPT) | st.lists(
    st.integers(1, 2), min_size=1, max_size=20
)  # the lists often have common prefixes
TOKENS = st.integers(1, MAX_TOKENS)
REQUESTS = st.tuples(PROMPTS, TOKENS, st.integers(0, 10), st.sampled_from([None, None, 2.0, 20.0]))
EVENTS = ["step"] * 6 + ["cancel", "grow", "fail_step", "fail_copies"]
ROUNDS = st.tuples(st.lists(REQUESTS, max_size=4), st.sampled_from(EVENTS), st.integers(0, 100), st.integers(0, 4))


@settings(max_examples=300)
@given(
    slots=st.integers(1, 6),
    more_slots=st.integers(0, 6),
    chunk_tokens=st.integers(3, 16),
    captured=st.booleans(),
    limits=st.just(PLENTY) | st.builds(Limits, inputs=st.integers(1, 9), tokens=st.integers(CAPACITY, 400)),
    rounds=long_lists(ROUNDS, 25),
)
def test_each_sequence_ends_exactly_once_and_no_invariant_is_violated(
    slots, more_slots, chunk_tokens, captured, limits, rounds
):
    simulation = Simulation(
        scheduler(slots=slots, chunk_tokens=chunk_tokens, limits=limits, max_slots=slots + more_slots)
    )
    if captured:
        simulation.plans.padded_batch_size = powers_of_two(simulation.plans)
    sequences: list[SequenceState] = []
    for requests, kind, number, steps in rounds:
        for prompt, tokens, priority, seconds in requests:
            deadline = None if seconds is None else simulation.now + seconds
            sequence = request(prompt, tokens, arrived=simulation.now, priority=priority, deadline=deadline)
            with suppress(Overloaded):
                simulation.plans.submit(sequence)
                sequences.append(sequence)
        if kind != "cancel":
            getattr(simulation, kind)()
        elif sequences:
            simulation.plans.cancel(sequences[number % len(sequences)])
        for _ in range(steps):
            simulation.step()
    while simulation.step():
        pass
    assert set(simulation.ended) == set(sequences)
    assert simulation.plans.admission.inputs == simulation.plans.admission.tokens == simulation.plans.wanted_slots == 0
    assert simulation.plans.plan(simulation.now) == Plan()


def rank(sequence: SequenceState) -> float:
    """The arrival time, shifted by the priority."""
    return sequence.arrived + SECONDS_PER_PRIORITY * (sequence.context.priority or DEFAULT_PRIORITY)


LEAVES = st.none() | st.integers(0, 100)  # an earlier sequence to cancel
ARRIVALS = st.tuples(st.integers(0, 4), st.integers(1, LONGEST_PROMPT), TOKENS, st.integers(0, 10), LEAVES)


@settings(max_examples=200)
@given(slots=st.integers(1, 5), chunk_tokens=st.integers(3, 16), arrivals=long_lists(ARRIVALS, 40))
def test_a_sequence_waits_only_for_the_work_of_sequences_of_lower_rank(slots, chunk_tokens, arrivals):
    simulation, submitted = Simulation(scheduler(slots=slots, chunk_tokens=chunk_tokens)), {}
    for steps, prompt, tokens, priority, leaves in arrivals:
        for _ in range(steps):
            simulation.step()
        sequence = request(prompt, tokens, arrived=simulation.now, priority=priority)
        simulation.plans.submit(sequence)
        submitted[sequence] = len(simulation.steps)
        if leaves is not None:
            simulation.plans.cancel(list(submitted)[leaves % len(submitted)])
    while simulation.step():
        pass
    ranks = {sequence: (rank(sequence), number) for number, sequence in enumerate(submitted)}
    for sequence in simulation.got_token:
        waited = simulation.got_token[sequence] - submitted[sequence]
        others = [
            other for other in submitted if other is not sequence and simulation.ended[other] > submitted[sequence]
        ]
        before = [
            other
            for other in others
            if simulation.got_slot.get(other, math.inf) < submitted[sequence] or ranks[other] < ranks[sequence]
        ]
        overtaken_by = set(others).difference(before).intersection(simulation.got_token)
        assert all(simulation.got_token[other] > simulation.got_token[sequence] for other in overtaken_by), (
            "overtaken by a sequence of higher rank"
        )
        chunks = sum(-(-each.prompt_tokens // (chunk_tokens - 1)) for each in (*before, sequence))
        full_steps = sum(other.max_tokens for other in before) // slots
        assert waited <= 2 * chunks + 1 + full_steps
    assert all(sequence in simulation.got_token or sequence.cancelled for sequence in submitted)


@given(prompts=long_lists(st.integers(1, LONGEST_PROMPT), 20))
def test_a_decoding_sequence_waits_for_at_most_one_chunk(prompts):
    simulation = Simulation(scheduler(slots=8, chunk_tokens=8))
    simulation.plans.submit(stream := request(prompt=2, tokens=CAPACITY - 2))
    simulation.step()
    for prompt in prompts:
        simulation.plans.submit(request(prompt, tokens=3))
    while stream not in simulation.ended:
        simulation.step()
    between = 0
    for step in simulation.steps[1:]:
        between = 0 if isinstance(step, Decode) else between + step.tokens
        assert between <= 8
