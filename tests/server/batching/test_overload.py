"""Simulated overload: requests answered in time, refused requests, and the wait of short requests beside large ones."""

import math

import pytest

from tests.server.batching.overload import SimulatedBatcher, SimulatedRequest, offered

SPEED = 5000.0  # tokens a second
CAPACITY = 0.96 * SPEED  # without padding and the fixed part of each batch
TOKENS = 110  # of a request, on average
DEADLINES_S = (0.5, 1.0, 2.0, 4.0)


def one_text(now, rng):
    return SimulatedRequest(now, [rng.randint(20, 200)], rng.choice(DEADLINES_S))


def several_texts(now, rng):
    return SimulatedRequest(now, [rng.randint(20, 200) for _ in range(rng.choice([1, 2, 4]))], rng.choice(DEADLINES_S))


def without_deadline(now, rng):
    return SimulatedRequest(now, [rng.randint(20, 200)], math.inf)


def constant(_):
    return SPEED


def drifting(now):
    return SPEED * (1 + 0.5 * math.sin(now / 2))


def goodput(requests, *, start, stop):
    """The tokens a second of the requests that were answered in time."""
    in_time = [request for request in requests if request.in_time and start <= request.done < stop]
    return sum(request.work for request in in_time) / (stop - start)


def simulate(make, *, load, speed=constant, seconds=20, tokens=TOKENS, **options):
    requests = offered(load * SPEED / tokens, seconds, make)
    SimulatedBatcher(speed=speed, **options).run(requests, until=seconds + 60)
    return requests


@pytest.mark.parametrize("speed", [constant, drifting])
@pytest.mark.parametrize(("make", "tokens"), [(one_text, TOKENS), (several_texts, TOKENS * 7 / 3)])
@pytest.mark.parametrize(("load", "share"), [(0.5, 0.95), (1, 0.75), (1.5, 0.88), (3, 0.9), (5, 0.9), (10, 0.9)])
def test_most_of_the_capacity_answers_requests_in_time_whatever_is_offered(load, share, make, tokens, speed):
    requests = simulate(make, load=load, speed=speed, tokens=tokens)
    possible = min(CAPACITY, sum(request.work for request in requests if request.arrived >= 3) / 17)
    assert goodput(requests, start=3, stop=20) >= share * possible
    accepted = [request for request in requests if request.refused != request.arrived]
    assert sum(request.in_time for request in accepted) >= 0.85 * len(accepted)


def test_a_refused_request_says_when_to_retry():
    refused = [request for request in simulate(one_text, load=3) if request.refused == request.arrived]
    assert len(refused) > 1000
    assert all(0 < request.retry_after_s < 5 for request in refused)


def test_two_workers_do_twice_the_work():
    one, two = (goodput(simulate(one_text, load=5, workers=workers), start=3, stop=20) for workers in (1, 2))
    assert two > 1.8 * one


def test_requests_without_a_deadline_wait_for_so_long_at_most_and_most_others_are_refused_at_once():
    requests = simulate(without_deadline, load=3, max_queue_s=5.0)
    answered = [request for request in requests if not math.isnan(request.done)]
    assert max(request.done - request.arrived for request in answered) < 6
    at_once = [request for request in requests if request.refused == request.arrived]
    assert len(at_once) >= 0.75 * (len(requests) - len(answered))
    assert goodput(requests, start=6, stop=20) >= 0.9 * SPEED


def test_after_a_pause_the_first_request_runs_however_slow_the_last_one_was():
    batcher = SimulatedBatcher(speed=lambda now: 10 if now < 20 else SPEED)  # 11 s for 110 tokens
    requests = [SimulatedRequest(now, [110], 4.0) for now in (0.0, 30.0, 40.0)]
    batcher.run(requests, until=60)
    assert [request.in_time for request in requests] == [False, True, True]


def test_short_requests_wait_for_one_batch_of_each_large_request_at_most():
    large = [SimulatedRequest(0.001 * number, [512] * 200, math.inf) for number in range(4)]
    short = offered(2.0, 60, lambda now, rng: SimulatedRequest(now, [rng.randint(5, 30)], math.inf))
    batcher = SimulatedBatcher(speed=lambda _: 1200.0, noise=0.0)
    batcher.run([*large, *short], until=70)
    batch_s = 1024 / 1200 + batcher.fixed_s
    waits = [request.done - request.arrived for request in short if request.arrived < 55]
    assert max(waits) < 6 * batch_s  # one that runs, four large requests, their own
    done = [200 - request.missing for request in large]
    assert max(done) - min(done) <= 4  # and the large requests take turns


def test_requests_of_many_texts_share_the_time_that_short_ones_leave():
    large = SimulatedRequest(0.0, [128] * 100, math.inf)
    short = offered(5.0, 60, lambda now, rng: SimulatedRequest(now, [100], 4.0))
    SimulatedBatcher(speed=lambda _: 1200.0).run([large, *short], until=70)
    assert large.done < 30
    assert sum(request.in_time for request in short) >= 0.95 * len(short)
