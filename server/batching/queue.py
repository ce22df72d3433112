"""The queue of a batcher: admits items, drops them, and maps each answer to its request."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.admission.queue import AdmissionQueue, CancelReason, Limits, RequestContext
from server.batching.collate import Item, Outputs
from server.batching.forecast import Forecast, Prediction
from server.batching.scheduler import Scheduler
from server.batching.waiting import WaitingItem, WaitingRequest
from server.errors import InvalidRequest, Overloaded
from server.observability.observer import Observer, TimeSpent, counting_refusals


@dataclass(eq=False)
class Request:
    """A request from its arrival in the queue to its answer: all of its items, and the answers so far."""

    items: Sequence[Item]
    answers: list[Outputs | None]
    missing: int
    done: asyncio.Future[None]
    work: TimeSpent = TimeSpent()  # in all batches that contained its items

    def spent(self, seconds: float) -> TimeSpent:
        """Where the time until the answer went: the part that was not work was queueing time."""
        return replace(self.work, queue_seconds=max(0.0, seconds - self.work.seconds))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def answer(self, number: int, outputs: Outputs) -> None:
        self.answers[number] = outputs
        self.missing -= 1
        if not self.missing and not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False)
class Reservation:
    """Queue capacity and deadline for inputs that are being prepared. Their items take it over."""

    inputs: int
    context: RequestContext
    field: str  # the name of the inputs in the request
    timeout: asyncio.Timeout
    answered: float | None = None  # when its last batch ended

    def cancel_reason(self, now: float) -> CancelReason:
        """Like `RequestContext.cancel_reason`."""
        return "expired" if self.timeout.expired() else self.context.cancel_reason(now)


class Queue:
    """Holds items from arrival to answer. Each has a key, and waits until it is taken into a batch."""

    def __init__(self, name: str, scheduler: Scheduler, forecast: Forecast, limits: Limits, observer: Observer) -> None:
        self.admission = AdmissionQueue(name, limits)
        self.scheduler = scheduler
        self.forecast = forecast
        self._observer = observer
        self._owners: dict[int, tuple[Request, int]] = {}  # key → request, and number of the item in it
        self._keys = 0

    @property
    def running(self) -> int:
        """The number of items that were taken and are not answered yet."""
        return len(self._owners) - len(self.scheduler)

    @property
    def preparing(self) -> int:
        """The number of inputs that were accepted but are not yet items."""
        return self.admission.inputs - len(self.scheduler)

    def reserve(self, inputs: int, context: RequestContext, now: float, *, field: str) -> Prediction:
        """Take queue capacity for inputs, and predict when they are done.

        Raises InvalidRequest if they can never fit; Overloaded if they do not fit now, or would be done too late.
        """
        with counting_refusals(self._observer):
            self.admission.limits.check(inputs=inputs, field=field)
            found = self.forecast.check(context, items=inputs, preparing=self.preparing, now=now)
            self.admission.acquire(inputs=inputs, tokens=0, field=field)
        return found

    def admit(self, request: Request, reservation: Reservation, now: float) -> range:
        """Take queue capacity for the tokens of a request, add its items, and return their keys.

        Raises as `reserve` does.
        """
        items, admission = request.items, self.admission
        assert reservation.inputs == len(items), (
            f"reserved {reservation.inputs} inputs, found {len(items)} items; this is a bug"
        )
        lengths = [self.scheduler.budget.shapes.length(item.tokens) for item in items]  # padded
        tokens = sum(item.tokens for item in items)
        self._check_sizes(items, reservation.field)
        admission.limits.check(inputs=len(items), tokens=tokens, field=reservation.field)
        with counting_refusals(self._observer):
            self.forecast.check(
                reservation.context,
                items=len(items),
                preparing=self.preparing - len(items),
                work=sum(lengths),
                now=now,
            )
            admission.acquire(inputs=0, tokens=tokens, field=reservation.field)
        reservation.inputs = 0
        return self._add(request, lengths, reservation.context, now)

    def _check_sizes(self, items: Sequence[Item], field: str) -> None:
        """Raise InvalidRequest if an item is too large for any batch."""
        budget = self.scheduler.budget
        for number, item in enumerate(items):
            if not budget.fits_alone(tokens=item.tokens, logit_positions=item.logit_positions):
                found = f"{item.tokens} tokens, {item.logit_positions} of them with logits"
                raise InvalidRequest(
                    f"{field}[{number}]", found, f"at most {budget.tokens}, {budget.logit_positions} with logits"
                )

    def _add(self, request: Request, lengths: Sequence[int], context: RequestContext, now: float) -> range:
        keys = range(self._keys, self._keys + len(request.items))
        self._keys = keys.stop
        rank, deadline = context.rank(now), context.answer_by - self.forecast.tail_s
        for number, (key, item, length) in enumerate(zip(keys, request.items, lengths, strict=True)):
            self._owners[key] = request, number
            self.forecast.item_arrived(length)
            self.scheduler.add(
                WaitingItem(
                    key=key,
                    tokens=item.tokens,
                    length=length,
                    logit_positions=item.logit_positions,
                    rank=rank,
                    arrived=now,
                    deadline=deadline,
                    request_key=keys.start,
                )
            )
        return keys

    def refuse_late(self, now: float) -> None:
        """Refuse the waiting requests that cannot be answered before their deadlines any more."""
        for waiting in self.forecast.late_requests(now):
            self._refuse(waiting, f"the deadline in {max(0.0, waiting.deadline - now):.1f} s is too near", now)

    def refuse_waiting(self, keys: range, now: float) -> None:
        """Refuse a request of which nothing has run yet; it waits for longer than a setting allows."""
        for waiting in self.scheduler.requests:
            if len(waiting.keys) == len(keys) and keys.start in waiting.keys:
                self._refuse(waiting, "the request has waited for too long", now)
                return

    def _refuse(self, waiting: WaitingRequest, reason: str, now: float) -> None:
        request, _ = self._owners[min(waiting.keys)]
        self.drop(list(waiting.keys), "overloaded")
        retry_after_s = self.forecast.predict(items=1, preparing=self.preparing, now=now).wait_s
        request.fail(Overloaded(f"{self.admission.name} is overloaded: {reason}", retry_after_s=retry_after_s))

    def drop(self, keys: Sequence[int], reason: str) -> None:
        """Remove the waiting items of a request that has ended. Running items finish; their outputs are discarded."""
        for key in keys:
            if (member := self.scheduler.drop(key)) is not None:
                del self._owners[key]
                self.admission.release(inputs=1, tokens=member.tokens)
                self._observer.dropped(reason)

    def items(self, members: Sequence[WaitingItem]) -> list[Item]:
        owners = (self._owners[member.key] for member in members)
        return [request.items[number] for request, number in owners]

    def take(self, planned: Sequence[WaitingItem], now: float) -> list[WaitingItem]:
        """Take the next batch out of the queue. Empty if no items are left."""
        members = self.scheduler.take(now, planned)
        for member in members:
            self.admission.release(inputs=1, tokens=member.tokens, waited_s=now - member.arrived)
        return members

    def answer(self, members: Sequence[WaitingItem], answers: Sequence[Outputs], spent: TimeSpent) -> None:
        """Deliver the answers of items that ran as one batch."""
        owners = [self._owners.pop(member.key) for member in members]
        for request in {request for request, _ in owners}:
            request.work += spent
        for (request, number), answer in zip(owners, answers, strict=True):
            request.answer(number, answer)

    def fail(self, members: Sequence[WaitingItem], error: Exception) -> None:
        """Fail the requests of a batch that failed."""
        self._observer.failed(len(members))
        for member in members:
            request, _ = self._owners.pop(member.key)
            failure = RuntimeError(f"{self.admission.name}: a batch of {len(members)} items failed")
            failure.__cause__ = error
            request.fail(failure)

    def abort(self, error: Exception) -> None:
        """Fail all requests. Their callers then drop the items."""
        for request in {request for request, _ in self._owners.values()}:
            request.fail(error)
