"""Overload of generation, simulated: sequences that end in time, and requests that are refused at once."""

import math
import random
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from server.admission.queue import AdmissionQueue, Limits, RequestContext
from server.errors import Overloaded
from server.generation.forecast import Forecast
from server.generation.scheduler import Scheduler
from server.generation.sequence import Decode, SequenceState

PROMPT, NEW = 30, 40  # tokens
SLOTS = 16
SECONDS = 60.0


def step_seconds(step):
    """A machine whose decode step costs 8 ms and 1 ms for each sequence, and a prompt 0.3 ms for each token."""
    return 0.008 + 0.001 * len(step.sequences) if isinstance(step, Decode) else 0.004 + 0.0003 * step.tokens


# All slots decode together; each sequence costs its prompt and its share of NEW steps.
CAPACITY = 1 / (0.004 + 0.0003 * PROMPT + NEW * (0.008 + 0.001 * SLOTS) / SLOTS)  # sequences a second


@dataclass
class Outcome:
    """What became of the requests of a run."""

    in_time: int = 0
    late: int = 0
    refused: int = 0  # at once
    refused_waiting: int = 0
    longest_wait_s: float = 0.0
    shortest_retry_s: float = math.inf

    @property
    def goodput(self):
        return self.in_time / SECONDS


class SimulatedEngine:
    """Runs steps one after another, while requests arrive at random times."""

    def __init__(self, *, max_queue_s=30.0, slow=lambda now: 1.0):
        limits = Limits(inputs=1000, tokens=1_000_000)
        self.forecast = Forecast("gpt", max_queue_s=max_queue_s)
        self.scheduler = Scheduler(AdmissionQueue("gpt", limits), self.forecast, slots=SLOTS, chunk_tokens=64)
        self.slow, self.random, self.outcome = slow, random.Random(0), Outcome()
        self.generated = Counter()

    def run(self, load, deadlines_s):
        now, due = 0.0, self.random.expovariate(load * CAPACITY)
        while now < SECONDS:
            while due <= now:
                self._arrive(due, self.random.choice(deadlines_s))
                due += self.random.expovariate(load * CAPACITY)
            plan = self.scheduler.plan(now)
            self.outcome.late += len(plan.expired)
            self.outcome.refused_waiting += len(plan.refused)
            if plan.step is None:
                self.forecast.paused()
                now = due
                continue
            seconds = step_seconds(plan.step) * self.slow(now) * self.random.lognormvariate(0, 0.1)
            now += seconds
            self._ran(plan.step, seconds, now)
        return self.outcome

    def _arrive(self, now, deadline_s):
        deadline = None if deadline_s is None else now + deadline_s
        prompt = np.array([self.random.randrange(1 << 40)] * PROMPT)
        context = RequestContext(deadline=deadline)
        try:
            self.scheduler.submit(SequenceState(prompt=prompt, max_tokens=NEW, context=context, arrived=now))
        except Overloaded as error:
            self.outcome.refused += 1
            self.outcome.shortest_retry_s = min(self.outcome.shortest_retry_s, error.retry_after_s)

    def _ran(self, step, seconds, now):
        self.scheduler.advance(step)
        self.forecast.ran(step, seconds, now)
        for sequence in step.sequences:
            if isinstance(step, Decode) or step.last:
                self.generated[sequence] += 1
                self.outcome.longest_wait_s = max(self.outcome.longest_wait_s, sequence.started - sequence.arrived)
            if self.generated[sequence] == NEW:
                self.forecast.ended(sequence, NEW, now)
                self.scheduler.finish(sequence)
                del self.generated[sequence]
                self.outcome.in_time += now <= (sequence.context.deadline or math.inf)


@pytest.mark.parametrize(("load", "share"), [(0.5, 0.9), (1, 0.8), (1.5, 0.85), (3, 0.85), (5, 0.85), (10, 0.85)])
@pytest.mark.parametrize("slow", [lambda now: 1.0, lambda now: 1 + 0.5 * math.sin(now / 3)], ids=["steady", "drifting"])
def test_most_of_the_capacity_generates_texts_that_end_in_time(load, share, slow):
    outcome = SimulatedEngine(slow=slow).run(load, deadlines_s=(2.0, 3.0, 4.0))
    assert outcome.goodput >= share * min(1, load) * CAPACITY
    accepted = outcome.in_time + outcome.late + outcome.refused_waiting
    assert outcome.in_time >= 0.75 * accepted
    assert outcome.shortest_retry_s > 0


def test_requests_without_a_deadline_wait_for_so_long_at_most():
    outcome = SimulatedEngine(max_queue_s=3.0).run(3, deadlines_s=(None,))
    assert outcome.goodput >= 0.9 * CAPACITY
    assert outcome.longest_wait_s <= 3.5
    assert outcome.refused_waiting <= 0.1 * outcome.refused


def test_after_a_pause_the_first_request_runs_however_slow_the_last_one_was():
    engine = SimulatedEngine(slow=lambda now: 100.0 if now < 5 else 1.0)
    engine.run(0.02, deadlines_s=(4.0,))
    assert engine.outcome.in_time >= 5
