"""The decisions of batching: as tables of cases, and as properties that hold for any rows."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from server.batching.scheduler import NEVER, Budget, Scheduler, Waiting
from server.batching.shapes import EXACT, Shapes, steps_to


def scheduler_of(lengths, budget, **settings):
    scheduler = Scheduler(budget, **settings)
    for key, tokens in enumerate(lengths):
        scheduler.add(Waiting(key=key, tokens=tokens, arrived=float(key)))
    return scheduler


def batches(scheduler):
    taken = []
    while batch := scheduler.take():
        taken.append([row.key for row in batch])
    return taken


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], {}, []),
        ([5], {}, [[0]]),
        # Equal lengths run together, in the order in which they came.
        ([5, 5, 5], {}, [[0, 1, 2]]),
        ([5, 5, 5], {"rows": 2}, [[0, 1], [2]]),
        # A short row and a long one do not: the short one would be mostly padding.
        ([5, 50, 5, 50], {}, [[0, 2], [1, 3]]),
        # Nearest first, whether shorter or longer, up to a tenth of padding.
        ([20, 22, 19, 30, 21], {}, [[0, 2, 4, 1], [3]]),
        # Padding counts against the budget: three rows of 21 would be 63 tokens.
        ([20, 21, 20, 19], {"tokens": 60}, [[0, 2, 3], [1]]),
        # What is free does not mind padding.
        ([5, 50, 5, 50], {"free_tokens": 100}, [[0, 2], [1, 3]]),
        ([5, 50, 5, 50], {"free_tokens": 200}, [[0, 2, 1, 3]]),
        ([5, 50, 5, 50], {"padding": 0.9}, [[0, 2, 1, 3]]),
    ],
)
def test_rows_near_in_length_run_together(lengths, budget, expected):
    assert batches(scheduler_of(lengths, Budget(**{"rows": 8, "tokens": 512, "heads": 512} | budget))) == expected


def test_positions_with_logits_have_a_budget_of_their_own():
    scheduler = Scheduler(Budget(rows=8, tokens=512, heads=10))
    for key in range(3):
        scheduler.add(Waiting(key=key, tokens=5, heads=5))
    assert batches(scheduler) == [[0, 1], [2]]


def test_the_lowest_rank_leads():
    scheduler = Scheduler(Budget(rows=1, tokens=512, heads=1))
    for key, rank in enumerate((2.0, 1.0, 2.0, 0.5)):
        scheduler.add(Waiting(key=key, tokens=5, rank=rank))
    assert batches(scheduler) == [[3], [1], [0], [2]]


def test_a_dropped_row_is_gone():
    scheduler = scheduler_of([5, 5, 5], Budget(rows=8, tokens=512, heads=1))
    assert scheduler.drop(1).key == 1
    assert scheduler.drop(1) is None
    assert batches(scheduler) == [[0, 2]]


def test_nothing_waits_for_company_unless_it_is_told_to():
    budget = Budget(rows=3, tokens=512, heads=1)
    assert Scheduler(budget).due(now=0.0) == NEVER
    assert scheduler_of([5], budget).due(now=0.0) == 0.0
    patient = scheduler_of([5, 5], budget, max_delay_s=2.0)  # came at 0 and at 1
    assert patient.due(now=1.5) == 0.5
    assert patient.due(now=9.0) == 0.0
    patient.add(Waiting(key=2, tokens=5, arrived=1.6))  # the batch is full
    assert patient.due(now=1.6) == 0.0


BUDGETS = st.builds(
    Budget,
    rows=st.integers(1, 9),
    tokens=st.integers(64, 300),
    heads=st.integers(16, 40),
    padding=st.floats(0, 0.9),
    free_tokens=st.sampled_from([0, 100, 1000]),
    shapes=st.sampled_from([EXACT, Shapes(lengths=steps_to(64, first=8), row_counts=steps_to(9))]),
)
ROWS = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 16), st.floats(0, 5)), max_size=40)


@given(BUDGETS, ROWS)
def test_every_row_runs_once_and_no_batch_exceeds_its_budget(budget, rows):
    scheduler = Scheduler(budget)
    for key, (tokens, heads, rank) in enumerate(rows):
        scheduler.add(Waiting(key=key, tokens=tokens, length=budget.shapes.length(tokens), heads=heads, rank=rank))
    taken = []
    while batch := scheduler.take():
        padded = len(batch) * max(row.length for row in batch)
        assert len(batch) <= budget.rows
        assert len(batch) == 1 or budget.shapes.row_count(len(batch)) * padded // len(batch) <= budget.tokens
        assert sum(row.heads for row in batch) <= budget.heads
        padding = padded - sum(row.length for row in batch)  # beyond that of each for itself
        assert len(batch) == 1 or padded <= budget.free_tokens or padding <= budget.padding * padded
        taken += [row.key for row in batch]
    assert sorted(taken) == list(range(len(rows)))
    assert len(scheduler) == 0


@given(BUDGETS, st.data())
def test_a_steady_stream_of_others_starves_nobody(budget, data):
    """However many rows keep coming behind it, a row runs within one batch more than there were rows before it."""
    scheduler = Scheduler(budget)
    ahead = data.draw(st.integers(0, 6))
    for key in range(ahead):
        scheduler.add(Waiting(key=key, tokens=data.draw(st.integers(1, 64)), rank=0.0))
    scheduler.add(Waiting(key=ahead, tokens=data.draw(st.integers(1, 64)), rank=0.0))
    key = ahead + 1
    for _ in range(ahead + 1):
        for _ in range(data.draw(st.integers(0, 5))):
            scheduler.add(Waiting(key=key, tokens=data.draw(st.integers(1, 64)), rank=1.0))
            key += 1
        if ahead in {row.key for row in scheduler.take()}:
            return
    pytest.fail("it still waits")


@given(BUDGETS, ROWS)
def test_a_plan_is_what_will_be_taken(budget, rows):
    scheduler = Scheduler(budget)
    for key, (tokens, heads, rank) in enumerate(rows):
        scheduler.add(Waiting(key=key, tokens=tokens, heads=heads, rank=rank))
    plan = scheduler.plan()
    assert scheduler.all_wait(plan)
    assert scheduler.take() == plan


@pytest.mark.parametrize("shapes", [EXACT, Shapes(lengths=steps_to(512, first=8))], ids=["exact", "steps"])
@pytest.mark.parametrize("callers", [16, 64, 256])
def test_lengths_of_all_kinds_are_padded_by_less_than_fifteen_percent(shapes, callers, record_property):
    """Lengths log-uniform over 8 to 512, each caller coming back at once; the usual settings."""
    random = np.random.default_rng(0)
    lengths = [int(length) for length in np.exp(random.uniform(np.log(8), np.log(512), 3000))]
    scheduler, coming = (
        Scheduler(Budget(rows=32, tokens=2048, heads=1, free_tokens=64, shapes=shapes)),
        iter(enumerate(lengths)),
    )
    real = padded = 0

    def come(count):
        for key, tokens in itertools.islice(coming, count):
            scheduler.add(Waiting(key=key, tokens=tokens, length=shapes.length(tokens)))

    come(callers)
    while batch := scheduler.take():
        real += sum(row.tokens for row in batch)
        padded += len(batch) * max(row.length for row in batch)
        come(len(batch))
    record_property("padding", 1 - real / padded)
    assert real == sum(lengths)
    assert 1 - real / padded < 0.15


def test_rows_whose_lengths_are_padded_to_the_same_step_run_together():
    shapes = Shapes(lengths=(8, 16), row_counts=(1, 2, 4))
    scheduler = Scheduler(Budget(rows=4, tokens=48, heads=1, padding=0.0, shapes=shapes))
    for key, tokens in enumerate((9, 8, 16, 12, 10)):
        scheduler.add(Waiting(key=key, tokens=tokens, length=shapes.length(tokens)))
    assert batches(scheduler) == [[0, 2], [1], [3, 4]]  # three rows would be padded to four, which is too much
