"""Overload, simulated: what is answered in time, what is refused, and how long short calls wait beside large ones."""

import math

import pytest

from tests.server.batching.overload import Machine, Simulated, offered

SPEED = 5000.0  # tokens a second
CAPACITY = 0.96 * SPEED  # without padding and the fixed part of each batch
TOKENS = 110  # of a call, on average
DEADLINES_S = (0.5, 1.0, 2.0, 4.0)


def one_text(now, rng):
    return Simulated(now, [rng.randint(20, 200)], rng.choice(DEADLINES_S))


def several_texts(now, rng):
    return Simulated(now, [rng.randint(20, 200) for _ in range(rng.choice([1, 2, 4]))], rng.choice(DEADLINES_S))


def without_deadline(now, rng):
    return Simulated(now, [rng.randint(20, 200)], math.inf)


def constant(_):
    return SPEED


def drifting(now):
    return SPEED * (1 + 0.5 * math.sin(now / 2))


def goodput(calls, *, start, stop):
    """The tokens a second of the calls that were answered in time."""
    return sum(call.work for call in calls if call.in_time and start <= call.done < stop) / (stop - start)


def simulate(make, *, load, speed=constant, seconds=20, tokens=TOKENS, **machine):
    calls = offered(load * SPEED / tokens, seconds, make)
    Machine(speed=speed, **machine).run(calls, until=seconds + 60)
    return calls


@pytest.mark.parametrize("speed", [constant, drifting])
@pytest.mark.parametrize(("make", "tokens"), [(one_text, TOKENS), (several_texts, TOKENS * 7 / 3)])
@pytest.mark.parametrize(("load", "share"), [(0.5, 0.95), (1, 0.75), (1.5, 0.88), (3, 0.9), (5, 0.9), (10, 0.9)])
def test_most_of_the_capacity_answers_calls_in_time_whatever_is_offered(load, share, make, tokens, speed):
    calls = simulate(make, load=load, speed=speed, tokens=tokens)
    possible = min(CAPACITY, sum(call.work for call in calls if call.arrived >= 3) / 17)
    assert goodput(calls, start=3, stop=20) >= share * possible
    accepted = [call for call in calls if call.refused != call.arrived]
    assert sum(call.in_time for call in accepted) >= 0.85 * len(accepted)


def test_a_call_is_told_to_retry_when_it_would_be_accepted():
    refused = [call for call in simulate(one_text, load=3) if call.refused == call.arrived]
    assert len(refused) > 1000
    assert all(0 < call.retry_after_s < 5 for call in refused)


def test_two_workers_do_twice_the_work():
    one, two = (goodput(simulate(one_text, load=5, workers=workers), start=3, stop=20) for workers in (1, 2))
    assert two > 1.8 * one


def test_calls_without_a_deadline_wait_for_so_long_at_most_and_most_others_are_refused_at_once():
    calls = simulate(without_deadline, load=3, max_queue_s=5.0)
    answered = [call for call in calls if not math.isnan(call.done)]
    assert max(call.done - call.arrived for call in answered) < 6
    at_once = [call for call in calls if call.refused == call.arrived]
    assert len(at_once) >= 0.75 * (len(calls) - len(answered))
    assert goodput(calls, start=6, stop=20) >= 0.9 * SPEED


def test_after_a_pause_the_first_call_runs_however_slow_the_last_one_was():
    machine = Machine(speed=lambda now: 10 if now < 20 else SPEED)  # 11 s for 110 tokens
    calls = [Simulated(now, [110], 4.0) for now in (0.0, 30.0, 40.0)]
    machine.run(calls, until=60)
    assert [call.in_time for call in calls] == [False, True, True]


def test_short_calls_wait_for_one_batch_of_each_large_call_at_most():
    large = [Simulated(0.001 * number, [512] * 200, math.inf) for number in range(4)]
    short = offered(2.0, 60, lambda now, rng: Simulated(now, [rng.randint(5, 30)], math.inf))
    machine = Machine(speed=lambda _: 1200.0, noise=0.0)
    machine.run([*large, *short], until=70)
    batch_s = 1024 / 1200 + machine.fixed_s
    waits = [call.done - call.arrived for call in short if call.arrived < 55]
    assert max(waits) < 6 * batch_s  # one that runs, four large calls, their own
    done = [200 - call.missing for call in large]
    assert max(done) - min(done) <= 4  # and the large calls take turns


def test_calls_of_many_texts_share_the_time_that_short_ones_leave():
    large = Simulated(0.0, [128] * 100, math.inf)
    short = offered(5.0, 60, lambda now, rng: Simulated(now, [100], 4.0))
    Machine(speed=lambda _: 1200.0).run([large, *short], until=70)
    assert large.done < 30
    assert sum(call.in_time for call in short) >= 0.95 * len(short)
