"""Limits and order of the admission queue."""

import pytest

from server.admission.queue import MAX_RETRY_S, AdmissionQueue, Limits, RequestContext
from server.errors import DeadlineExceeded, InvalidRequest, Overloaded


def test_the_queue_is_limited_in_requests_and_tokens():
    queue = AdmissionQueue("bert", Limits(inputs=3, tokens=100))
    queue.acquire(inputs=2, tokens=90)
    with pytest.raises(Overloaded, match="2 of 3 inputs and 90 of 100 tokens wait, so 1 and 11 do not fit"):
        queue.acquire(inputs=1, tokens=11)
    with pytest.raises(Overloaded):
        queue.acquire(inputs=2, tokens=2)
    queue.acquire(inputs=1, tokens=10)
    queue.release(inputs=3, tokens=100)
    assert (queue.inputs, queue.tokens) == (0, 0)


def test_a_request_larger_than_the_queue_is_invalid():
    queue = AdmissionQueue("bert", Limits(inputs=3, tokens=100))
    with pytest.raises(InvalidRequest, match="texts: found 4 inputs, expected at most 3 inputs"):
        queue.acquire(inputs=4, tokens=4, field="texts")
    with pytest.raises(InvalidRequest, match="found 101 tokens together, expected at most 3 inputs and 100 tokens"):
        queue.acquire(inputs=1, tokens=101)


def test_a_request_can_have_limits_of_its_own():
    queue = AdmissionQueue("bert", Limits(inputs=30, tokens=1000, request_inputs=3, request_tokens=100))
    with pytest.raises(InvalidRequest, match="texts: found 4 inputs, expected at most 3 inputs and 100 tokens"):
        queue.acquire(inputs=4, tokens=4, field="texts")
    with pytest.raises(InvalidRequest, match="found 101 tokens together, expected at most 3 inputs and 100 tokens"):
        queue.acquire(inputs=1, tokens=101)
    for _ in range(10):
        queue.acquire(inputs=3, tokens=100)
    with pytest.raises(Overloaded):
        queue.acquire(inputs=1, tokens=1)


def test_a_request_is_never_larger_than_the_queue():
    limits = Limits(inputs=3, tokens=100, request_inputs=5, request_tokens=500)
    assert (limits.max_inputs, limits.max_tokens) == (3, 100)


def test_the_retry_hint_follows_the_waiting_times():
    queue = AdmissionQueue("bert", Limits(inputs=1000, tokens=1000))
    at_first = queue.retry_after_s
    for _ in range(100):
        queue.acquire(inputs=1, tokens=1)
        queue.release(inputs=1, tokens=1, waited_s=2.0)
    assert at_first < 0.1
    assert queue.retry_after_s == pytest.approx(2.0, rel=0.01)
    for _ in range(100):
        queue.acquire(inputs=1, tokens=1)
        queue.release(inputs=1, tokens=1, waited_s=1e6)
    assert queue.retry_after_s == MAX_RETRY_S


def test_a_higher_priority_is_worth_a_limited_time():
    assert (
        RequestContext(priority=1).rank(now=10.0)
        < RequestContext().rank(now=10.0)
        < RequestContext(priority=9).rank(now=10.0)
    )
    assert RequestContext(priority=9).rank(now=10.0) < RequestContext(priority=1).rank(now=19.0)
    assert RequestContext().rank(now=10.0) < RequestContext().rank(now=10.1)


def test_a_negative_priority_is_refused():
    with pytest.raises(InvalidRequest, match="priority: found -1"):
        RequestContext(priority=-1)


def test_a_call_that_is_cancelled_shortly_before_its_deadline_counts_as_expired():
    context = RequestContext(deadline=5.0, leeway_s=0.25)
    assert [context.cancel_reason(now) for now in (4.0, 4.8, 6.0)] == ["cancelled", "expired", "expired"]
    assert RequestContext().cancel_reason(now=4.0) == "cancelled"


def test_a_call_expires_at_its_deadline():
    context = RequestContext(deadline=5.0)
    context.check_deadline(4.9)
    with pytest.raises(DeadlineExceeded):
        context.check_deadline(5.0)
    assert not RequestContext().expired(1e9)
