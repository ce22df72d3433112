"""A simulated batcher under load: requests arrive at random times, batches take the time that a machine would need."""

import heapq
import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from server.admission.queue import RequestContext
from server.batching.forecast import Forecast
from server.batching.scheduler import Budget, Scheduler, work_of
from server.batching.waiting import WaitingItem
from server.errors import Overloaded

TAIL_S = 0.01  # from the end of a batch to the answer


@dataclass
class SimulatedRequest:
    """One request. Times are in seconds, NaN for what has not happened."""

    arrived: float
    lengths: list[int]  # of its items, in tokens
    patience_s: float  # infinite without a deadline
    predicted_s: float = math.nan  # from its arrival to its answer
    done: float = math.nan
    refused: float = math.nan
    retry_after_s: float = math.nan
    missing: int = field(init=False)  # items without an answer
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


class SimulatedBatcher:
    """Runs requests as the batcher does. A batch takes `fixed_s` seconds, and computes `speed` tokens a second."""

    def __init__(
        self, *, speed: Callable[[float], float], fixed_s=0.005, budget=None, workers=1, noise=0.1, max_queue_s=30.0
    ):
        self.speed, self.fixed_s = speed, fixed_s
        self.random, self.noise = random.Random(0), noise
        self.scheduler = Scheduler(budget or Budget(items=32, tokens=1024, logit_positions=1 << 20, free_tokens=64))
        self.max_queue_s = max_queue_s
        self.forecast = Forecast("model", self.scheduler, workers=workers, max_queue_s=max_queue_s)
        self._free = workers
        self._owners: dict[int, SimulatedRequest] = {}  # by the key of an item that waits or runs
        self._keys, self._numbers = itertools.count(), itertools.count()
        # A heap: the time, the number of the event, its handler, and the request or batch that it happens to.
        self._events: list[tuple[float, int, Callable[[Any, float], None], Any]] = []

    def run(self, requests: list[SimulatedRequest], until: float) -> None:
        """Simulate until no request is left or the time is over."""
        for request in requests:
            self._at(request.arrived, self._arrive, request)
        while self._events and self._events[0][0] < until:
            now, _, handle, subject = heapq.heappop(self._events)
            handle(subject, now)
            self._start_batches(now)

    def _at(self, when, handle, subject):
        heapq.heappush(self._events, (when, next(self._numbers), handle, subject))

    def _arrive(self, request, now):
        context = RequestContext(deadline=None if request.patience_s == math.inf else request.deadline)
        count = len(request.lengths)
        try:
            request.predicted_s = self.forecast.check(context, items=count, preparing=0, now=now).finish_s
            self.forecast.check(context, items=count, preparing=0, now=now, work=request.work)
        except Overloaded as error:
            request.refused, request.retry_after_s = now, error.retry_after_s
            return
        keys = list(itertools.islice(self._keys, count))
        for key, length in zip(keys, request.lengths, strict=True):
            self._owners[key] = request
            self.forecast.item_arrived(length)
            self.scheduler.add(
                WaitingItem(
                    key=key,
                    tokens=length,
                    rank=context.rank(now),
                    arrived=now,
                    request_key=keys[0],
                    deadline=request.deadline - self.forecast.tail_s,
                )
            )
        if request.patience_s < math.inf:
            self._at(request.deadline, self._expire, request)
        else:
            self._at(now + self.max_queue_s, self._refuse_waiting, request)

    def _end(self, batch, now):
        self._free += 1
        self.scheduler.pace.finish(id(batch), now)
        for item in batch:
            request = self._owners.pop(item.key)
            request.missing -= 1
            if not request.missing and math.isnan(request.refused):
                request.done = now + TAIL_S
                self.forecast.answered(TAIL_S)
                self.forecast.lateness.record(request.done - request.arrived - request.predicted_s)

    def _refuse_waiting(self, request, now):
        """Refuse a request of which nothing has run yet."""
        waiting = self._keys_of(request)
        if len(waiting) == len(request.lengths) and all(map(self.scheduler.drop, waiting)):
            request.refused = now
            for key in waiting:
                del self._owners[key]

    def _expire(self, request, now):
        if math.isnan(request.done) and math.isnan(request.refused):
            self.forecast.lateness.record(now - request.arrived - request.predicted_s)
        for key in self._keys_of(request):
            if self.scheduler.drop(key):
                del self._owners[key]

    def _keys_of(self, request):
        return [key for key, owner in self._owners.items() if owner is request]

    def _start_batches(self, now):
        while self._free and len(self.scheduler):
            for late in self.forecast.late_requests(now):
                for key in list(late.keys):
                    self.scheduler.drop(key)
                    self._owners.pop(key).refused = now
            if not (batch := self.scheduler.take(now)):
                break
            self._free -= 1
            self.scheduler.pace.start(id(batch), work_of(batch), now)
            seconds = self.fixed_s + work_of(batch) / self.speed(now) * self.random.lognormvariate(0, self.noise)
            self._at(now + seconds, self._end, batch)


def offered(rate: float, seconds: float, make: Callable[[float, random.Random], SimulatedRequest], seed=0):
    """Requests at random times, `rate` of them a second."""
    rng, now, requests = random.Random(seed), 0.0, []
    while (now := now + rng.expovariate(rate)) < seconds:
        requests.append(make(now, rng))
    return requests
