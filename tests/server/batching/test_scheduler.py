"""The decisions of batching: as tables of cases, and as properties that hold for any items."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from server.batching.scheduler import Budget, Scheduler
from server.batching.shape_buckets import EXACT, Shapes, steps_to
from server.batching.waiting import NEVER, WaitingItem


def scheduler_of(lengths, budget, **settings):
    scheduler = Scheduler(budget, **settings)
    for key, tokens in enumerate(lengths):
        scheduler.add(WaitingItem(key=key, tokens=tokens, arrived=float(key)))
    return scheduler


def batches(scheduler):
    taken = []
    while batch := scheduler.take(0.0):
        taken.append([item.key for item in batch])
    return taken


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([], {}, []),
        ([5], {}, [[0]]),
        # Equal lengths run together, in the order in which they came.
        ([5, 5, 5], {}, [[0, 1, 2]]),
        ([5, 5, 5], {"items": 2}, [[0, 1], [2]]),
        # A short item and a long one do not: the short one would be mostly padding.
        ([5, 50, 5, 50], {}, [[0, 2], [1, 3]]),
        # Nearest first, whether shorter or longer, up to a tenth of padding.
        ([20, 22, 19, 30, 21], {}, [[0, 2, 4, 1], [3]]),
        # Padding counts against the budget: three items of 21 would be 63 tokens.
        ([20, 21, 20, 19], {"tokens": 60}, [[0, 2, 3], [1]]),
        # What is free does not mind padding.
        ([5, 50, 5, 50], {"free_tokens": 100}, [[0, 2], [1, 3]]),
        ([5, 50, 5, 50], {"free_tokens": 200}, [[0, 2, 1, 3]]),
        ([5, 50, 5, 50], {"padding": 0.9}, [[0, 2, 1, 3]]),
    ],
)
def test_rows_near_in_length_run_together(lengths, budget, expected):
    assert (
        batches(scheduler_of(lengths, Budget(**{"items": 8, "tokens": 512, "logit_positions": 512} | budget)))
        == expected
    )


def test_positions_with_logits_have_a_budget_of_their_own():
    scheduler = Scheduler(Budget(items=8, tokens=512, logit_positions=10))
    for key in range(3):
        scheduler.add(WaitingItem(key=key, tokens=5, logit_positions=5))
    assert batches(scheduler) == [[0, 1], [2]]


def test_the_lowest_rank_leads():
    scheduler = Scheduler(Budget(items=1, tokens=512, logit_positions=1))
    for key, rank in enumerate((2.0, 1.0, 2.0, 0.5)):
        scheduler.add(WaitingItem(key=key, tokens=5, rank=rank))
    assert batches(scheduler) == [[3], [1], [0], [2]]


def test_a_dropped_row_is_gone():
    scheduler = scheduler_of([5, 5, 5], Budget(items=8, tokens=512, logit_positions=1))
    assert scheduler.drop(1).key == 1
    assert scheduler.drop(1) is None
    assert batches(scheduler) == [[0, 2]]


def test_nothing_waits_for_company_unless_it_is_told_to():
    budget = Budget(items=3, tokens=512, logit_positions=1)
    assert Scheduler(budget).due(now=0.0) == NEVER
    assert scheduler_of([5], budget).due(now=0.0) == 0.0
    patient = scheduler_of([5, 5], budget, max_delay_s=2.0)  # came at 0 and at 1
    assert patient.due(now=1.5) == 0.5
    assert patient.due(now=9.0) == 0.0
    patient.add(WaitingItem(key=2, tokens=5, arrived=1.6))  # the batch is full
    assert patient.due(now=1.6) == 0.0


BUDGETS = st.builds(
    Budget,
    items=st.integers(1, 9),
    tokens=st.integers(64, 300),
    logit_positions=st.integers(16, 40),
    padding=st.floats(0, 0.9),
    free_tokens=st.sampled_from([0, 100, 1000]),
    shapes=st.sampled_from([EXACT, Shapes(lengths=steps_to(64, first=8), batch_sizes=steps_to(9))]),
)
ROWS = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 16)), min_size=1, max_size=6)
REQUESTS = st.tuples(st.floats(0, 5), ROWS)
EVENTS = st.lists(st.one_of(REQUESTS, st.sampled_from(["plan", "take", "take"]), st.integers(0, 50)), max_size=40)


def turn(item):
    return item.rank, item.key


class Day:
    """A scheduler as it is used: requests come, batches are planned and taken, items dropped; until all ran."""

    def __init__(self, budget, events):
        self.items, self.dropped, self.batches = {}, set(), []
        self.came_to = {}  # key → how many batches had been taken when it came
        self.before = {}  # key → whose turn was before its own while it waited
        self._scheduler, self._shapes, self._planned = Scheduler(budget), budget.shapes, []
        for event in events:
            match event:
                case "plan":
                    self._planned = self._scheduler.plan(0.0)
                case "take":
                    self._take()
                case int(key):
                    self.dropped |= {item.key for item in [self._scheduler.drop(key)] if item}
                case rank, request:
                    self._come(rank, request)
        while len(self._scheduler):
            self._take()

    @property
    def taken(self):
        return [item.key for batch in self.batches for item in batch]

    def _come(self, rank, request):
        for tokens, logit_positions in request:
            key, length = len(self.items), self._shapes.length(tokens)
            item = self.items[key] = WaitingItem(
                key=key, tokens=tokens, length=length, logit_positions=logit_positions, rank=rank
            )
            others = [self.items[other] for other in self.before.keys() - self.dropped - set(self.taken)]
            self.before[key] = {other.key for other in others if turn(other) < turn(item)}
            for other in others:
                if turn(item) < turn(other):
                    self.before[other.key].add(key)
            self.came_to[key] = len(self.batches)
            self._scheduler.add(item)

    def _take(self):
        if batch := self._scheduler.take(0.0, self._planned):
            self.batches.append(batch)


@given(BUDGETS, EVENTS)
def test_every_row_runs_once_or_was_dropped(budget, events):
    day = Day(budget, events)
    assert sorted([*day.taken, *day.dropped]) == list(day.items)


@given(BUDGETS, EVENTS)
def test_no_batch_exceeds_its_budget(budget, events):
    for batch in Day(budget, events).batches:
        longest = max(item.length for item in batch)
        padded, lengths = len(batch) * longest, sum(item.length for item in batch)  # padding: beyond that of each alone
        assert len(batch) <= budget.items
        assert sum(item.logit_positions for item in batch) <= budget.logit_positions
        assert len(batch) == 1 or budget.shapes.batch_size(len(batch)) * longest <= budget.tokens
        assert len(batch) == 1 or padded <= budget.free_tokens or padded - lengths <= budget.padding * padded


@given(BUDGETS, EVENTS)
def test_a_row_waits_for_no_more_batches_than_rows_had_their_turn_before_it(budget, events):
    day = Day(budget, events)
    for number, batch in enumerate(day.batches):
        for item in batch:
            assert number - day.came_to[item.key] <= len(day.before[item.key])


@given(BUDGETS, EVENTS)
def test_rows_of_a_request_that_are_of_one_length_run_in_their_order(budget, events):
    """So do those of several requests, as long as they have one rank."""
    day, orders = Day(budget, events), {}
    for key in day.taken:
        orders.setdefault((day.items[key].rank, day.items[key].length), []).append(key)
    assert all(order == sorted(order) for order in orders.values())


@given(BUDGETS, EVENTS)
def test_a_plan_is_what_is_taken_if_nothing_happens_between(budget, events):
    scheduler = Scheduler(budget)
    for item in Day(budget, events).items.values():
        scheduler.add(item)
    plan = scheduler.plan(0.0)
    assert scheduler.take(0.0, plan) == plan


def test_a_plan_is_kept_for_rows_that_came_later_and_would_not_fit():
    scheduler = scheduler_of([5, 5], Budget(items=2, tokens=512, logit_positions=1))
    planned = scheduler.plan(0.0)
    scheduler.add(WaitingItem(key=2, tokens=5))
    assert [item.key for item in scheduler.take(0.0, planned)] == [0, 1]


@pytest.mark.parametrize(
    ("happens", "expected"),
    [
        (lambda scheduler: scheduler.add(WaitingItem(key=3, tokens=5)), [0, 2, 3]),  # there is room for it
        (
            lambda scheduler: scheduler.add(WaitingItem(key=3, tokens=1, rank=-1.0)),
            [3],
        ),  # it is its turn, alone as it is
        (lambda scheduler: scheduler.drop(2), [0]),
        (lambda scheduler: scheduler.drop(0), [1]),  # it led
    ],
    ids=["joined", "overtaken", "left", "led no more"],
)
def test_a_plan_is_given_up_for_a_better_one(happens, expected):
    scheduler = scheduler_of([5, 50, 5], Budget(items=3, tokens=512, logit_positions=1))
    planned = scheduler.plan(0.0)
    assert [item.key for item in planned] == [0, 2]
    happens(scheduler)
    assert [item.key for item in scheduler.take(0.0, planned)] == expected


@pytest.mark.parametrize("shapes", [EXACT, Shapes(lengths=steps_to(512, first=8))], ids=["exact", "steps"])
@pytest.mark.parametrize("callers", [16, 64, 256])
def test_lengths_of_all_kinds_are_padded_by_less_than_fifteen_percent(shapes, callers, record_property):
    """Lengths log-uniform over 8 to 512, each caller coming back at once; the usual settings."""
    random = np.random.default_rng(0)
    lengths = [int(length) for length in np.exp(random.uniform(np.log(8), np.log(512), 3000))]
    scheduler, coming = (
        Scheduler(Budget(items=32, tokens=2048, logit_positions=1, free_tokens=64, shapes=shapes)),
        iter(enumerate(lengths)),
    )
    real = padded = 0

    def come(count):
        for key, tokens in itertools.islice(coming, count):
            scheduler.add(WaitingItem(key=key, tokens=tokens, length=shapes.length(tokens)))

    come(callers)
    while batch := scheduler.take(0.0):
        real += sum(item.tokens for item in batch)
        padded += len(batch) * max(item.length for item in batch)
        come(len(batch))
    record_property("padding", 1 - real / padded)
    assert real == sum(lengths)
    assert 1 - real / padded < 0.15


def test_rows_whose_lengths_are_padded_to_the_same_step_run_together():
    shapes = Shapes(lengths=(8, 16), batch_sizes=(1, 2, 4))
    scheduler = Scheduler(Budget(items=4, tokens=48, logit_positions=1, padding=0.0, shapes=shapes))
    for key, tokens in enumerate((9, 8, 16, 12, 10)):
        scheduler.add(WaitingItem(key=key, tokens=tokens, length=shapes.length(tokens)))
    assert batches(scheduler) == [[0, 2], [1], [3, 4]]  # three items would be padded to four, which is too much
