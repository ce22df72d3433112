"""Predicts when a new request would be answered, and refuses requests that would be answered too late. Pure."""

from dataclasses import dataclass

from server.admission.pace import LatenessEstimate
from server.admission.queue import RequestContext
from server.batching.scheduler import Scheduler
from server.batching.waiting import WaitingRequest
from server.errors import Overloaded


@dataclass(frozen=True)
class Prediction:
    """In seconds from now."""

    wait_s: float  # until the first item of a request runs
    finish_s: float  # until its last item has run


class Forecast:
    """Knows how much work waits and runs, and how fast it is done."""

    def __init__(self, name: str, scheduler: Scheduler, *, workers: int, max_queue_s: float) -> None:
        """Requests without a deadline wait for at most `max_queue_s` seconds."""
        self.lateness = LatenessEstimate()
        self.tail_s = 0.0  # from the end of a request's last batch to its answer
        self._name, self._scheduler, self._workers = name, scheduler, workers
        self._max_queue_s = max_queue_s
        self._item_work = 0.0  # of recent items, on average, in tokens

    def item_arrived(self, work: int) -> None:
        """Learn the size of an item, in tokens."""
        self._item_work += 0.05 * (work - self._item_work) if self._item_work else work

    def answered(self, tail_s: float) -> None:
        """Learn from a request that was answered `tail_s` seconds after its last batch ended."""
        self.tail_s += 0.1 * (tail_s - self.tail_s)

    def predict(
        self, *, items: int, preparing: int, now: float, work: float | None = None, rank: float = float("inf")
    ) -> Prediction:
        """The times at which a request of `items` items would run if it arrived now.

        `preparing` is the number of inputs of other requests that were accepted but are not yet in the queue. `work` is
        the size of the request in tokens; by default, recent items of average size are assumed.
        """
        pace, slowdown = self._scheduler.pace, self._scheduler.pace.slowdown(now)
        work = items * self._item_work if work is None else work
        ahead_items, ahead = self._scheduler.requests.ahead(work, rank)
        wait_s = pace.remaining(now) + self._seconds(ahead_items + preparing, ahead + preparing * self._item_work)
        own_s = max(pace.seconds(work / max(items, 1)), self._seconds(items, work) / self._workers)
        return Prediction(slowdown * wait_s / self._workers, slowdown * (wait_s / self._workers + own_s))

    def check(
        self, context: RequestContext, *, items: int, preparing: int, now: float, work: float | None = None
    ) -> Prediction:
        """The prediction for a request. Raises Overloaded if it would miss its deadline, or wait for too long.

        A request is accepted in any case while there is no other: it delays none, and its time shows the speed.
        """
        rank = context.rank(now)
        found = self.predict(items=items, preparing=preparing, now=now, work=work, rank=rank)
        if not (preparing or len(self._scheduler) or self._scheduler.pace.running):
            return found
        left_s, limit = context.time_left(now, max_wait_s=self._max_queue_s)
        late_s = (found.wait_s if context.deadline is None else found.finish_s + self.lateness.margin_s) - left_s
        if late_s > 0:
            raise Overloaded(
                f"{self._name} is overloaded: the request would wait for about {found.wait_s:.1f} s and take "
                f"{found.finish_s + self.lateness.margin_s:.1f} s, and {limit}",
                retry_after_s=late_s,
            )
        return found

    def late_requests(self, now: float) -> list[WaitingRequest]:
        """The waiting requests that cannot end before their deadlines any more.

        A single waiting request is never late: no other one needs the time.
        """
        requests = list(self._scheduler.requests)
        if len(requests) < 2:
            return []
        late = [
            request for request in requests if now + self._seconds(len(request.keys), request.work) > request.deadline
        ]
        return late[1:] if len(late) == len(requests) and self._scheduler.pace.stale(now) else late

    def _seconds(self, items: float, work: float) -> float:
        """The time that `items` items of `work` tokens together take on one worker, in full batches."""
        budget = self._scheduler.budget
        batches = max(items / budget.items, work / budget.tokens)
        return self._scheduler.pace.seconds(work, batches=max(batches, min(1.0, items)))
