"""Measuring in turn, with a clock that only the workloads advance."""

import pytest

from server.concurrency.stop_signal import StopSignal
from server.errors import NotReady
from server.tuning.measure import MAX_ROUNDS, MIN_ROUNDS, TimeLimit, Workload, compare
from server.tuning.search import speedup


class Clock:
    """Its time passes only in runs of workloads."""

    def __init__(self):
        self.now, self.runs = 0.0, []

    def __call__(self):
        return self.now

    def workload(self, name, seconds, *, work=1.0):
        def run():
            self.runs.append(name)
            self.now += seconds

        return Workload(name, run, work)


def compared(clock, ours, theirs, *, seconds=100.0, stop=None):
    return compare([ours], [theirs], limit=TimeLimit(seconds, clock), stop=stop or StopSignal())


@pytest.mark.parametrize(("ours", "theirs", "ratio"), [(0.2, 0.1, 2.0), (0.1, 0.2, 0.5), (0.3, 0.3, 1.0)])
def test_the_ratio_is_that_of_the_times(ours, theirs, ratio):
    clock = Clock()
    found = compared(clock, clock.workload("ours", ours), clock.workload("theirs", theirs))
    assert speedup(found) == pytest.approx(ratio)


def test_times_are_compared_for_the_same_work():
    clock = Clock()
    found = compared(clock, clock.workload("8 texts", 0.8, work=8), clock.workload("4 texts", 0.2, work=4))
    assert speedup(found) == pytest.approx(2.0)


def test_the_order_alternates():
    clock = Clock()
    compared(clock, clock.workload("a", 0.2), clock.workload("b", 0.2))
    assert clock.runs[2:8] == ["a", "b", "b", "a", "a", "b"]


def test_short_runs_are_repeated_and_end_soon():
    clock = Clock()
    found = compared(clock, clock.workload("a", 0.0001), clock.workload("b", 0.0001))
    assert len(found[0].pairs) == MAX_ROUNDS
    assert clock.now < 0.2


def test_long_runs_get_few_rounds():
    clock = Clock()
    found = compared(clock, clock.workload("a", 1.0), clock.workload("b", 1.0))
    assert len(found[0].pairs) == 5


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_clear_result_needs_the_fewest(seconds):
    clock = Clock()
    found = compared(clock, clock.workload("a", 1.0), clock.workload("b", seconds))
    assert len(found[0].pairs) == MIN_ROUNDS


def test_nothing_is_measured_if_the_time_is_too_short():
    clock = Clock()
    assert compared(clock, clock.workload("a", 1.0), clock.workload("b", 1.0), seconds=6.0) == []
    assert clock.now == 2.0  # one run of each showed it


def test_the_limit_ends_the_rounds():
    clock = Clock()
    found = compared(clock, clock.workload("a", 1.0), clock.workload("b", 1.0), seconds=8.0)
    assert len(found[0].pairs) == MIN_ROUNDS


def test_a_limit_that_is_ended_early_leaves_no_time():
    limit = TimeLimit(10.0, Clock())
    limit.end()
    assert limit.left == 0
    clock = Clock()
    assert compare([clock.workload("a", 1.0)], [clock.workload("b", 1.0)], limit=limit, stop=StopSignal()) == []


def test_the_stop_signal_ends_it_at_the_next_run():
    clock, stop = Clock(), StopSignal()
    stopping = Workload("b", stop.set)
    with pytest.raises(NotReady):
        compared(clock, clock.workload("a", 1.0), stopping, stop=stop)
    assert len(clock.runs) == 1
