"""Decisions of the scheduler, as tables. Properties of any sequence of events are in test_scheduler_properties.py."""

import itertools

import numpy as np
import pytest

from server.admission.queue import AdmissionQueue, Limits, RequestContext
from server.errors import InvalidRequest, Overloaded
from server.generation.forecast import Forecast
from server.generation.prefix import Copy
from server.generation.scheduler import Scheduler, chunk_length
from server.generation.sequence import Decode, Plan, Prefill, SequenceState

PLENTY = Limits(inputs=1000, tokens=1_000_000)


def scheduler(slots=4, chunk_tokens=8, limits=PLENTY, min_shared_tokens=3, max_slots=0) -> Scheduler:
    return Scheduler(
        AdmissionQueue("gpt", limits),
        Forecast("gpt"),
        slots=slots,
        max_slots=max_slots,
        chunk_tokens=chunk_tokens,
        min_shared_tokens=min_shared_tokens,
    )


UNIQUE_TOKENS = itertools.count(1000)


def request(prompt: int | list[int] = 4, tokens=10, *, arrived=0.0, **context) -> SequenceState:
    """A sequence with this prompt, or with one of this length that has no common prefix with others."""
    ids = [next(UNIQUE_TOKENS)] * prompt if isinstance(prompt, int) else prompt
    return SequenceState(prompt=np.array(ids), max_tokens=tokens, context=RequestContext(**context), arrived=arrived)


def run(plans: Scheduler, now=1.0) -> Prefill | Decode | None:
    """Run one step in which no sequence ends."""
    step = plans.plan(now).step
    if step:
        plans.advance(step)
    return step


def decoding(plans: Scheduler, *sequences: SequenceState) -> None:
    """Submit sequences, and run their prefills."""
    for sequence in sequences:
        plans.submit(sequence)
    while len(plans.decoding) < len(sequences):
        run(plans)


def test_an_idle_scheduler_has_an_empty_plan():
    assert scheduler().plan(0.0) == Plan()


def test_a_short_prompt_is_prefilled_at_once_and_then_decoded():
    plans, only = scheduler(), request(prompt=4)
    plans.submit(only)
    assert run(plans) == Prefill(only, 0, 4)
    assert run(plans) == Decode((only,))
    assert only.computed_tokens == 5


def test_a_long_prompt_is_prefilled_in_chunks():
    plans = scheduler(chunk_tokens=8)
    plans.submit(long := request(prompt=20))
    assert [run(plans) for _ in range(3)] == [Prefill(long, 0, 8), Prefill(long, 8, 16), Prefill(long, 16, 20)]


@pytest.mark.parametrize(
    ("remaining", "max_tokens", "length"), [(1, 8, 1), (7, 8, 7), (8, 8, 8), (9, 8, 7), (10, 8, 8), (4, 3, 2)]
)
def test_a_chunk_never_leaves_a_single_token(remaining, max_tokens, length):
    assert chunk_length(remaining, max_tokens) == length


def test_decode_steps_and_prefills_alternate():
    plans, streaming = scheduler(chunk_tokens=8), request()
    decoding(plans, streaming)
    run(plans)
    plans.submit(request(prompt=24))
    assert [type(run(plans)) for _ in range(6)] == [Prefill, Decode, Prefill, Decode, Prefill, Decode]


def test_only_a_few_tiny_prompts_are_prefilled_between_two_decode_steps():
    plans = scheduler(slots=40, chunk_tokens=64)
    decoding(plans, request())
    run(plans)
    for _ in range(31):
        plans.submit(request(prompt=2))
    kinds = "".join(run(plans).kind[0] for _ in range(10))
    assert kinds == "ppppdppppd"


def test_short_prompts_are_prefilled_between_two_decode_steps_up_to_a_chunk():
    plans = scheduler(chunk_tokens=8)
    decoding(plans, request())
    run(plans)
    for _ in range(3):
        plans.submit(request(prompt=4))
    assert [type(run(plans)) for _ in range(5)] == [Prefill, Prefill, Decode, Prefill, Decode]


def test_requests_start_in_order_of_arrival_and_priority():
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


def test_the_last_slot_moves_into_the_gap_of_an_ended_sequence():
    plans, first, second, third = scheduler(slots=3), request(prompt=4), request(prompt=5), request(prompt=6)
    decoding(plans, first, second, third)
    run(plans)
    plans.finish(first)
    plan = plans.plan(1.0)
    assert plan.copies == (Copy(source=2, target=0, tokens=third.computed_tokens),)
    assert plan.step == Decode((third, second))


def test_nothing_moves_when_the_last_slot_ends():
    plans, first, second = scheduler(), request(), request()
    decoding(plans, first, second)
    plans.finish(second)
    assert plans.plan(1.0).copies == ()


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "prefilling", "decoding"])
def test_a_cancelled_sequence_is_removed_before_the_next_step(steps):
    plans, leaving = scheduler(chunk_tokens=8), request(prompt=12)
    plans.submit(leaving)
    for _ in range(steps):
        run(plans)
    plans.cancel(leaving)
    assert plans.plan(1.0) == Plan(cancelled=(leaving,))
    assert not plans.waiting
    assert not plans.running
    assert plans.admission.inputs == plans.admission.tokens == 0


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "prefilling", "decoding"])
def test_an_expired_sequence_is_removed_before_the_next_step(steps):
    plans, leaving, staying = scheduler(chunk_tokens=8), request(prompt=12, deadline=5.0), request(deadline=9.0)
    plans.submit(leaving)
    plans.submit(staying)
    for _ in range(steps):
        run(plans, now=4.9)
    assert plans.plan(4.9).expired == ()
    assert plans.plan(5.0).expired == (leaving,)
    assert plans.plan(9.0).expired == (staying,)


def test_cancelling_an_ended_sequence_has_no_effect():
    plans, ended = scheduler(), request()
    decoding(plans, ended)
    plans.finish(ended)
    plans.cancel(ended)
    assert plans.plan(1.0) == Plan()


def test_the_next_prompt_follows_one_that_ends_during_its_prefill():
    plans, failing, next_one = scheduler(), request(), request()
    plans.submit(failing)
    plans.submit(next_one)
    assert plans.plan(1.0).step == Prefill(failing, 0, 4)
    plans.finish(failing)
    assert plans.plan(1.0).step == Prefill(next_one, 0, 4)


@pytest.mark.parametrize("limits", [Limits(inputs=2, tokens=1000), Limits(inputs=1000, tokens=30)])
def test_a_full_queue_refuses_sequences(limits):
    plans = scheduler(limits=limits)
    plans.submit(request(prompt=4, tokens=10))
    plans.submit(request(prompt=4, tokens=10))
    with pytest.raises(Overloaded, match="queue of gpt is full"):
        plans.submit(request(prompt=4, tokens=10))
    run(plans)
    plans.submit(request(prompt=4, tokens=10))


def test_a_sequence_larger_than_the_queue_is_an_invalid_request():
    with pytest.raises(InvalidRequest, match="prompt"):
        scheduler(limits=Limits(inputs=10, tokens=10)).submit(request(prompt=8, tokens=8))


# ---- the prefix cache

LONG = [1, 2, 3, 4, 5, 6, 7, 8]


def finished(plans: Scheduler, *sequences: SequenceState) -> None:
    """Submit and finish sequences, one after the other."""
    for sequence in sequences:
        decoding(plans, sequence)
        plans.finish(sequence)
        plans.plan(1.0)


def test_a_common_prefix_with_a_running_sequence_is_copied():
    plans, first, second = scheduler(), request(LONG), request([*LONG[:5], 9, 9, 9])
    decoding(plans, first)
    run(plans)
    plans.submit(second)
    plan = plans.plan(1.0)
    assert plan.copies == (Copy(source=0, target=1, tokens=5),)
    assert plan.step == Prefill(second, 5, 8)
    assert second.cached_tokens == 5


def test_the_prompt_of_a_finished_sequence_is_reused():
    plans, again = scheduler(), request([*LONG, 9, 9])
    finished(plans, request(LONG))
    plans.submit(again)
    plan = plans.plan(1.0)
    assert (plan.step, again.cached_tokens) == (Prefill(again, 8, 10), 8)


def test_the_last_two_tokens_of_a_prompt_are_always_prefilled():
    plans, same = scheduler(), request(LONG)
    finished(plans, request(LONG))
    plans.submit(same)
    assert plans.plan(1.0).step == Prefill(same, 6, 8)


def test_a_short_common_prefix_is_not_copied():
    plans, other = scheduler(), request([1, 2, 9, 9, 9, 9])
    finished(plans, request(LONG))
    plans.submit(other)
    assert (plans.plan(1.0).step, other.cached_tokens) == (Prefill(other, 0, 6), 0)


def test_the_least_recently_used_prompt_is_dropped_first():
    plans = scheduler(slots=3)
    one, two, three = ([token] * 6 for token in (1, 2, 3))
    finished(plans, request(one), request(two), request(three), request(one))
    finished(plans, request([4] * 6))
    kept = sorted(int(entry.prompt[0]) for entry in plans.prefix_cache.entries.values())
    assert kept == [1, 3, 4]


def test_a_cached_prompt_moves_only_once():
    plans, first = scheduler(slots=8), request(LONG)
    decoding(plans, first)
    plans.finish(first)
    others = [request([number]) for number in range(20, 26)]
    plans.submit(*others)
    copies = []
    while len(plans.decoding) < len(others):
        plan = plans.plan(1.0)
        copies += plan.copies
        plans.advance(plan.step)
    assert copies == [Copy(source=0, target=7, tokens=8)]


def test_a_cached_prompt_moves_when_its_slot_is_needed():
    plans, first, second = scheduler(), request(LONG), request()
    decoding(plans, first, second)
    plans.finish(first)
    assert plans.plan(1.0).copies == (
        Copy(source=0, target=3, tokens=8),
        Copy(source=1, target=0, tokens=second.computed_tokens),
    )
    plans.submit(again := request([*LONG, 9, 9]))
    run(plans)
    assert again.cached_tokens == 8


def test_the_prompt_of_a_failed_step_is_not_reused():
    plans, failing, same = scheduler(), request(LONG), request(LONG)
    decoding(plans, failing)
    plans.fail(failing)
    plans.submit(same)
    assert plans.plan(1.0).step == Prefill(same, 0, 8)
