"""The rate of each caller is limited."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.admission.rate import MIN_SWEEP, RateLimit
from server.errors import Overloaded


def allowed(limit, times, caller="alice"):
    """Which of the requests at these times pass."""
    passed = []
    for now in times:
        try:
            limit.take(caller, now)
        except Overloaded:
            passed.append(False)
        else:
            passed.append(True)
    return passed


def test_a_burst_of_one_second_passes_and_then_the_rate():
    assert allowed(RateLimit(4), [0.0] * 6) == [True] * 4 + [False] * 2
    assert allowed(RateLimit(4), [0.0] * 4 + [0.2, 0.25, 0.26, 0.5]) == [True] * 4 + [False, True, False, True]


def test_a_rate_below_one_passes_a_request_now_and_then():
    assert allowed(RateLimit(0.5), [10.0, 11.0, 11.9, 12.0, 13.0, 14.0]) == [True, False, False, True, False, True]


def test_callers_have_buckets_of_their_own():
    limit = RateLimit(1)
    assert allowed(limit, [0.0, 0.0], "alice") == [True, False]
    assert allowed(limit, [0.0, 0.0], "bob") == [True, False]


def test_a_refused_request_says_when_to_retry_and_costs_nothing():
    limit = RateLimit(2)
    assert allowed(limit, [0.0, 0.0]) == [True, True]
    for now, wait_s in ((0.0, 0.5), (0.1, 0.4), (0.4, 0.1)):
        with pytest.raises(Overloaded, match="more than 2 requests per second from alice; retry in 0") as error:
            limit.take("alice", now)
        assert error.value.retry_after_s == pytest.approx(wait_s)
    assert allowed(limit, [0.5]) == [True]


@given(
    rate=st.floats(0.1, 50),
    steps=st.lists(st.floats(0, 3), max_size=60),
)
def test_no_interval_has_more_than_a_burst_and_its_rate(rate, steps):
    limit, now, passed = RateLimit(rate), 0.0, []
    for step in steps:
        now += step
        try:
            limit.take("alice", now)
        except Overloaded:
            continue
        passed.append(now)
    for first, start in enumerate(passed):
        for count, end in enumerate(passed[first:], 1):
            assert count <= max(1, rate) + rate * (end - start) + 1e-6


@given(rate=st.floats(0.1, 50), times=st.lists(st.floats(0, 3), max_size=40))
def test_a_request_passes_after_the_advised_time(rate, times):
    limit = RateLimit(rate)
    for now in sorted(times):
        try:
            limit.take("alice", now)
        except Overloaded as refused:
            limit.take("alice", now + refused.retry_after_s)
            return


def test_idle_callers_are_forgotten():
    limit = RateLimit(1)
    for number in range(20 * MIN_SWEEP):
        limit.take(f"caller {number}", now=number / 100)
    assert len(limit._full_at) <= MIN_SWEEP
