"""Decisions as tables, then properties over random days of work. No clock, no thread, no tensor."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.admission import Call, Gate, Limits
from server.errors import InvalidRequest, Overloaded
from server.generation.prefix import Copy
from server.generation.scheduler import Decode, Plan, Prefill, Scheduler, Sequence, chunk_length

PLENTY = Limits(requests=1000, tokens=1_000_000)


def scheduler(slots=4, chunk_tokens=8, limits=PLENTY, shared_tokens=3) -> Scheduler:
    return Scheduler(Gate("gpt", limits), slots=slots, chunk_tokens=chunk_tokens, shared_tokens=shared_tokens)


NEVER_SEEN = itertools.count(1000)  # tokens


def request(prompt: int | list[int] = 4, tokens=10, *, arrived=0.0, **call) -> Sequence:
    """A request with this prompt, or with one of this length that shares nothing with any other."""
    ids = [next(NEVER_SEEN)] * prompt if isinstance(prompt, int) else prompt
    return Sequence(prompt=np.array(ids), max_tokens=tokens, call=Call(**call), arrived=arrived)


def run(plans: Scheduler, now=1.0) -> Prefill | Decode | None:
    """One step, in which nobody ends."""
    step = plans.plan(now).step
    if step:
        plans.advance(step)
    return step


def decoding(plans: Scheduler, *sequences: Sequence) -> None:
    """Bring requests to where they decode."""
    for sequence in sequences:
        plans.submit(sequence)
    while len(plans.decoding) < len(sequences):
        run(plans)


def test_without_requests_there_is_nothing_to_do():
    assert scheduler().plan(0.0) == Plan()


def test_a_short_prompt_is_read_at_once_and_then_decoded():
    plans, only = scheduler(), request(prompt=4)
    plans.submit(only)
    assert run(plans) == Prefill(only, 0, 4)
    assert run(plans) == Decode((only,))
    assert only.cached == 5


def test_a_long_prompt_is_read_in_chunks():
    plans = scheduler(chunk_tokens=8)
    plans.submit(long := request(prompt=20))
    assert [run(plans) for _ in range(3)] == [Prefill(long, 0, 8), Prefill(long, 8, 16), Prefill(long, 16, 20)]


@pytest.mark.parametrize(
    ("remaining", "longest", "length"), [(1, 8, 1), (7, 8, 7), (8, 8, 8), (9, 8, 7), (10, 8, 8), (4, 3, 2)]
)
def test_a_chunk_never_leaves_a_single_token(remaining, longest, length):
    assert chunk_length(remaining, longest) == length


def test_streams_and_prompts_alternate():
    plans, streaming = scheduler(chunk_tokens=8), request()
    decoding(plans, streaming)
    run(plans)
    plans.submit(request(prompt=24))
    assert [type(run(plans)) for _ in range(6)] == [Prefill, Decode, Prefill, Decode, Prefill, Decode]


def test_several_short_prompts_are_read_between_two_steps_up_to_a_chunk():
    plans = scheduler(chunk_tokens=8)
    decoding(plans, request())
    run(plans)
    for _ in range(3):
        plans.submit(request(prompt=4))
    assert [type(run(plans)) for _ in range(5)] == [Prefill, Prefill, Decode, Prefill, Decode]


def test_requests_come_in_by_arrival_and_a_higher_priority_is_worth_some_seconds():
    plans = scheduler(slots=1)
    usual, later, urgent, much_later = (
        request(arrived=0.0),
        request(arrived=1.0),
        request(arrived=2.0, priority=1),
        request(arrived=100.0, priority=1),
    )
    for sequence in (usual, later, urgent, much_later):
        plans.submit(sequence)
    order = []
    while step := plans.plan(200.0).step:
        plans.advance(step)
        if isinstance(step, Decode):
            order.append(step.sequences[0])
            plans.finish(step.sequences[0])
    assert order == [urgent, usual, later, much_later]


def test_the_last_slot_moves_into_the_hole_that_an_ended_request_leaves():
    plans, first, second, third = scheduler(slots=3), request(prompt=4), request(prompt=5), request(prompt=6)
    decoding(plans, first, second, third)
    run(plans)
    plans.finish(first)
    plan = plans.plan(1.0)
    assert plan.copies == (Copy(source=2, target=0, tokens=third.cached),)
    assert plan.step == Decode((third, second))


def test_nothing_moves_when_the_last_ends():
    plans, first, second = scheduler(), request(), request()
    decoding(plans, first, second)
    plans.finish(second)
    assert plans.plan(1.0).copies == ()


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "reading", "decoding"])
def test_a_cancelled_request_is_gone_by_the_next_step(steps):
    plans, leaving = scheduler(chunk_tokens=8), request(prompt=12)
    plans.submit(leaving)
    for _ in range(steps):
        run(plans)
    plans.cancel(leaving)
    assert plans.plan(1.0) == Plan(cancelled=(leaving,))
    assert plans.idle
    assert plans.gate.requests == plans.gate.tokens == 0


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "reading", "decoding"])
def test_a_request_whose_time_is_up_is_gone_by_the_next_step(steps):
    plans, leaving, staying = scheduler(chunk_tokens=8), request(prompt=12, deadline=5.0), request(deadline=9.0)
    plans.submit(leaving)
    plans.submit(staying)
    for _ in range(steps):
        run(plans, now=4.9)
    assert plans.plan(4.9).expired == ()
    assert plans.plan(5.0).expired == (leaving,)
    assert plans.plan(9.0).expired == (staying,)


def test_cancelling_what_has_ended_does_nothing():
    plans, ended = scheduler(), request()
    decoding(plans, ended)
    plans.finish(ended)
    plans.cancel(ended)
    assert plans.plan(1.0) == Plan()


def test_a_request_that_fails_while_its_prompt_is_read_frees_the_way():
    plans, failing, next_one = scheduler(), request(), request()
    plans.submit(failing)
    plans.submit(next_one)
    assert plans.plan(1.0).step == Prefill(failing, 0, 4)
    plans.finish(failing)
    assert plans.plan(1.0).step == Prefill(next_one, 0, 4)


@pytest.mark.parametrize("limits", [Limits(requests=2, tokens=1000), Limits(requests=1000, tokens=30)])
def test_a_full_queue_refuses(limits):
    plans = scheduler(limits=limits)
    plans.submit(request(prompt=4, tokens=10))
    plans.submit(request(prompt=4, tokens=10))
    with pytest.raises(Overloaded, match="queue of gpt is full"):
        plans.submit(request(prompt=4, tokens=10))
    run(plans)
    plans.submit(request(prompt=4, tokens=10))


def test_what_can_never_wait_is_refused_for_good():
    with pytest.raises(InvalidRequest, match="prompt"):
        scheduler(limits=Limits(requests=10, tokens=10)).submit(request(prompt=8, tokens=8))


# ---- prompts that were read before

LONG = [1, 2, 3, 4, 5, 6, 7, 8]


def finished(plans: Scheduler, *sequences: Sequence) -> None:
    """Bring requests in and to their end, one after the other."""
    for sequence in sequences:
        decoding(plans, sequence)
        plans.finish(sequence)
        plans.plan(1.0)


def test_what_a_prompt_shares_with_a_running_one_is_copied_and_not_read():
    plans, first, second = scheduler(), request(LONG), request([*LONG[:5], 9, 9, 9])
    decoding(plans, first)
    run(plans)
    plans.submit(second)
    plan = plans.plan(1.0)
    assert plan.copies == (Copy(source=0, target=1, tokens=5),)
    assert plan.step == Prefill(second, 5, 8)
    assert second.reused == 5


def test_the_prompt_of_a_finished_request_is_used_again():
    plans, again = scheduler(), request([*LONG, 9, 9])
    finished(plans, request(LONG))
    plans.submit(again)
    plan = plans.plan(1.0)
    assert (plan.step, again.reused) == (Prefill(again, 8, 10), 8)


def test_the_last_two_tokens_are_always_read_anew():
    plans, same = scheduler(), request(LONG)
    finished(plans, request(LONG))
    plans.submit(same)
    assert plans.plan(1.0).step == Prefill(same, 6, 8)


def test_too_little_in_common_is_not_worth_a_copy():
    plans, other = scheduler(), request([1, 2, 9, 9, 9, 9])
    finished(plans, request(LONG))
    plans.submit(other)
    assert (plans.plan(1.0).step, other.reused) == (Prefill(other, 0, 6), 0)


def test_the_least_recently_used_prompt_goes_first():
    plans = scheduler(slots=3)
    one, two, three = ([token] * 6 for token in (1, 2, 3))
    finished(plans, request(one), request(two), request(three), request(one))
    finished(plans, request([4] * 6))
    kept = sorted(int(kept.prompt[0]) for kept in plans.prefixes.kept.values())
    assert kept == [1, 3, 4]


def test_the_prompt_of_who_has_ended_makes_way_for_who_moves_and_is_kept_elsewhere():
    plans, first, second = scheduler(), request(LONG), request()
    decoding(plans, first, second)
    plans.finish(first)
    assert plans.plan(1.0).copies == (
        Copy(source=0, target=2, tokens=8),
        Copy(source=1, target=0, tokens=second.cached),
    )
    plans.submit(again := request([*LONG, 9, 9]))
    run(plans)
    assert again.reused == 8


def test_a_failed_step_leaves_nothing_to_use_again():
    plans, failing, same = scheduler(), request(LONG), request(LONG)
    decoding(plans, failing)
    plans.fail(failing)
    plans.submit(same)
    assert plans.plan(1.0).step == Prefill(same, 0, 8)


@dataclass
class Day:
    """A scheduler at work: runs its plans on imaginary slots, and checks what must always hold."""

    plans: Scheduler
    slots: dict[int, list[int]] = field(default_factory=dict)  # the tokens whose keys and values are in each
    made: dict[Sequence, list[int]] = field(default_factory=dict)
    ended: list[Sequence] = field(default_factory=list)
    now: float = 0.0
    steps: list[Prefill | Decode] = field(default_factory=list)

    def step(self) -> bool:
        plan = self.plans.plan(self.now)
        self.ended += [*plan.cancelled, *plan.expired]
        for copy in plan.copies:
            assert len(self.slots[copy.source]) >= copy.tokens
            self.slots[copy.target] = self.slots[copy.source][: copy.tokens]
        running = self.plans.running
        assert len({sequence.slot for sequence in running}) == len(running) <= self.plans.slots
        assert all(0 <= sequence.slot < self.plans.slots for sequence in running)
        for slot, kept in self.plans.prefixes.kept.items():
            assert slot not in {sequence.slot for sequence in running}
            assert self.slots[slot][: len(kept.prompt)] == kept.prompt.tolist()
        if plan.step is None:
            assert self.plans.idle, "there is work, and nothing is done"
            return False
        if isinstance(plan.step, Decode):
            assert not (self.plans.reading and self.steps and isinstance(self.steps[-1], Decode)), (
                "a prompt stands still"
            )
            self.decode(plan.step)
        else:
            self.prefill(plan.step)
        self.steps.append(plan.step)
        return True

    def check(self, sequence: Sequence) -> None:
        """Its keys and values are where they should be."""
        whole = [*sequence.prompt.tolist(), *self.made.get(sequence, [])]
        assert self.slots.get(sequence.slot, [])[: sequence.cached] == whole[: sequence.cached]

    def decode(self, step: Decode) -> None:
        assert step.sequences, "an empty batch kills the process"
        assert [sequence.slot for sequence in step.sequences] == list(range(len(step.sequences)))
        for sequence in step.sequences:
            self.check(sequence)
            held = self.slots[sequence.slot][: sequence.cached]
            self.slots[sequence.slot] = [*held, self.made[sequence][-1]]
        self.plans.advance(step)
        for sequence in step.sequences:
            self.give_token(sequence)

    def prefill(self, step: Prefill) -> None:
        sequence = step.sequence
        assert 0 < step.tokens <= self.plans.chunk_tokens
        assert step.tokens > 1 or sequence.prompt_tokens == 1, "one token alone comes out different"
        assert step.start == sequence.cached
        assert sequence.slot >= len(self.plans.decoding), "it would be in the way of those that decode"
        self.check(sequence)
        self.slots[sequence.slot] = sequence.prompt[: step.stop].tolist()
        self.plans.advance(step)
        if step.last:
            self.give_token(sequence)

    def give_token(self, sequence: Sequence) -> None:
        made = self.made.setdefault(sequence, [])
        made.append(next(NEVER_SEEN))
        if len(made) == sequence.max_tokens:
            self.plans.finish(sequence)
            self.ended.append(sequence)


PROMPTS = st.integers(1, 40) | st.lists(st.integers(1, 2), min_size=1, max_size=20)  # of two tokens: they often share
REQUESTS = st.tuples(PROMPTS, st.integers(1, 12), st.integers(0, 10), st.none() | st.floats(0, 60))
EVENTS = st.one_of(REQUESTS, st.just("step"), st.just("step"), st.tuples(st.just("cancel"), st.integers(0, 30)))


@settings(max_examples=300)
@given(slots=st.integers(1, 5), chunk_tokens=st.integers(3, 16), events=st.lists(EVENTS, max_size=60))
def test_every_request_ends_exactly_once_and_slots_are_never_over_committed(slots, chunk_tokens, events):
    day = Day(scheduler(slots=slots, chunk_tokens=chunk_tokens))
    sequences: list[Sequence] = []
    for event in events:
        day.now += 0.5
        match event:
            case "step":
                day.step()
            case ("cancel", number):
                if sequences:
                    day.plans.cancel(sequences[number % len(sequences)])
            case (prompt, tokens, priority, deadline):
                until = None if deadline is None else day.now + deadline
                sequences.append(request(prompt, tokens, arrived=day.now, priority=priority, deadline=until))
                day.plans.submit(sequences[-1])
    while day.step():
        day.now += 0.5
    assert sorted(map(id, day.ended)) == sorted(map(id, sequences))
    assert day.plans.gate.requests == day.plans.gate.tokens == 0
    assert day.plans.plan(day.now) == Plan()


@given(
    slots=st.integers(1, 5),
    prompts=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=20),
)
def test_nobody_waits_longer_than_the_work_before_takes(slots, prompts):
    day = Day(scheduler(slots=slots, chunk_tokens=8))
    for prompt, tokens in prompts:
        day.plans.submit(request(prompt, tokens))
    while day.step():
        pass
    chunks = sum(1 for step in day.steps if isinstance(step, Prefill))
    assert chunks <= sum(prompt // 7 + 1 for prompt, _ in prompts)
    assert len(day.steps) <= chunks + sum(tokens for _, tokens in prompts)


@given(prompts=st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_a_stream_waits_for_one_chunk_of_tokens_at_most(prompts):
    day = Day(scheduler(slots=8, chunk_tokens=8))
    day.plans.submit(request(prompt=2, tokens=200))
    day.step()
    for prompt in prompts:
        day.plans.submit(request(prompt, tokens=3))
    while day.step():
        pass
    between = 0
    for step in day.steps[1:]:
        between = 0 if isinstance(step, Decode) else between + step.tokens
        assert between <= 8
