"""A simulated batcher under load: calls arrive at random times, batches take the time that a machine would need."""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from server.admission.queue import RequestContext
from server.batching.forecast import Forecast
from server.batching.scheduler import Budget, Scheduler, work_of
from server.batching.waiting import WaitingItem
from server.errors import Overloaded

TAIL_S = 0.01  # from the end of a batch to the answer


@dataclass
class Simulated:
    """One call."""

    arrived: float
    lengths: list[int]
    patience_s: float  # infinite without a deadline
    missing: int = 0
    done: float = math.nan
    refused: float = math.nan
    deadline: float = field(init=False)

    def __post_init__(self):
        self.deadline = self.arrived + self.patience_s
        self.missing = len(self.lengths)

    @property
    def in_time(self):
        return self.done <= self.deadline

    @property
    def work(self):
        return sum(self.lengths)


class Machine:
    """Runs calls as the batcher does. A batch takes `fixed_s` seconds and as long as `speed` tokens a second need."""

    def __init__(
        self, *, speed: Callable[[float], float], fixed_s=0.005, budget=None, workers=1, noise=0.1, max_queue_s=30.0
    ):
        self.speed, self.fixed_s, self.workers = speed, fixed_s, workers
        self.random, self.noise = random.Random(0), noise
        self.scheduler = Scheduler(budget or Budget(items=32, tokens=1024, logit_positions=1 << 20, free_tokens=64))
        self.max_queue_s = max_queue_s
        self.forecast = Forecast("model", self.scheduler, workers=workers, max_queue_s=max_queue_s)

    def run(self, calls: list[Simulated], until: float) -> None:
        """Simulate until no call is left or the time is over."""
        numbers = itertools.count()
        events = [(call.arrived, next(numbers), "arrive", call) for call in calls]
        heapq.heapify(events)
        owners, free, keys = {}, self.workers, itertools.count()
        while events and events[0][0] < until:
            now, _, what, subject = heapq.heappop(events)
            match what:
                case "arrive":
                    self._arrive(subject, now, owners, keys)
                case "end":
                    free += 1
                    self.scheduler.pace.finish(id(subject), now)
                    for item in subject:
                        call = owners.pop(item.key)
                        call.missing -= 1
                        if not call.missing and math.isnan(call.refused):
                            call.done = now + TAIL_S
                            self.forecast.answered(TAIL_S)
                            self.forecast.lateness.record(call.done - call.arrived - call.predicted)
                case "too long":
                    waiting = [key for key, call in owners.items() if call is subject]
                    if len(waiting) == len(subject.lengths) and all(map(self.scheduler.drop, waiting)):
                        subject.refused = now
                        for key in waiting:
                            del owners[key]
                case "expire":
                    if math.isnan(subject.done) and math.isnan(subject.refused):
                        self.forecast.lateness.record(now - subject.arrived - subject.predicted)
                    for key in [key for key, call in owners.items() if call is subject]:
                        if self.scheduler.drop(key):
                            del owners[key]
            if what == "arrive" and math.isnan(subject.refused):
                limited = subject.patience_s < math.inf
                when, event = (subject.deadline, "expire") if limited else (now + self.max_queue_s, "too long")
                heapq.heappush(events, (when, next(numbers), event, subject))
            while free and len(self.scheduler):
                for late in self.forecast.late_requests(now):
                    for key in list(late.keys):
                        self.scheduler.drop(key)
                        owners.pop(key).refused = now
                if not (batch := self.scheduler.take(now)):
                    break
                free -= 1
                self.scheduler.pace.start(id(batch), work_of(batch), now)
                seconds = self.fixed_s + work_of(batch) / self.speed(now) * self.random.lognormvariate(0, self.noise)
                heapq.heappush(events, (now + seconds, next(numbers), "end", batch))

    def _arrive(self, call, now, owners, keys):
        context = RequestContext(deadline=None if call.patience_s == math.inf else call.deadline)
        try:
            call.predicted = self.forecast.check(context, items=len(call.lengths), preparing=0, now=now).finish_s
            self.forecast.check(context, items=len(call.lengths), preparing=0, now=now, work=call.work)
        except Overloaded as error:
            call.refused, call.retry_after_s = now, error.retry_after_s
            return
        first = None
        for length in call.lengths:
            key = next(keys)
            first = key if first is None else first
            owners[key] = call
            self.forecast.item_arrived(length)
            self.scheduler.add(
                WaitingItem(
                    key=key,
                    tokens=length,
                    rank=context.rank(now),
                    arrived=now,
                    request_key=first,
                    deadline=call.deadline - self.forecast.tail_s,
                )
            )


def offered(rate: float, seconds: float, make: Callable[[float, random.Random], Simulated], seed=0):
    """Calls at random times, `rate` of them a second."""
    rng, now, calls = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate)) < seconds:
        calls.append(make(now, rng))
    return calls
