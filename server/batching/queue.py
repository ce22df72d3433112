"""The rows that wait to run, of all callers: who comes in, who leaves, and whose each answer is."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from server.admission.queue import AdmissionQueue, Gone, Limits, RequestContext
from server.batching.collate import Outputs, Row
from server.batching.scheduler import Scheduler, Waiting
from server.errors import InvalidRequest, Overloaded
from server.observability.observer import Observer, Spent


@dataclass(eq=False)
class Request:
    """The rows of one caller, and the answers that are there so far."""

    rows: Sequence[Row]
    answers: list[Outputs | None]
    missing: int
    done: asyncio.Future[None]
    work: Spent = Spent()  # on all batches that it was in

    def spent(self, seconds: float) -> Spent:
        """Of the seconds until it was answered: what was not work was waiting."""
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
    """Room in the queue for inputs that are being prepared, until their rows take it over; and how long there is."""

    inputs: int
    call: RequestContext
    field: str  # what the caller knows the inputs as
    timeout: asyncio.Timeout

    def why_gone(self, now: float) -> Gone:
        """Why a caller leaves now."""
        return "expired" if self.timeout.expired() else self.call.why_gone(now)


class Queue:
    """Rows from when they come until they are answered. A row is known by its key, and waits until it is taken."""

    def __init__(self, name: str, scheduler: Scheduler, limits: Limits, observer: Observer) -> None:
        self.gate = AdmissionQueue(name, limits)
        self.scheduler = scheduler
        self._observer = observer
        self._owners: dict[int, tuple[Request, int]] = {}  # key → whose the row is, and its number
        self._keys = 0

    @property
    def running(self) -> int:
        """Rows that were taken and are not answered."""
        return len(self._owners) - len(self.scheduler)

    def admit(self, *, requests: int, tokens: int, field: str) -> None:
        """Take so much room; InvalidRequest if there can never be so much, Overloaded if there is not now."""
        try:
            self.gate.enter(requests=requests, tokens=tokens, field=field)
        except Overloaded:
            self._observer.refused("overloaded")
            raise

    def check(self, rows: Sequence[Row], field: str) -> None:
        """InvalidRequest if no batch can hold one of the rows."""
        budget = self.scheduler.budget
        for number, row in enumerate(rows):
            if not budget.fits_alone(tokens=row.tokens, logit_positions=row.logit_positions):
                found = f"{row.tokens} tokens, {row.logit_positions} of them with logits"
                raise InvalidRequest(
                    f"{field}[{number}]", found, f"at most {budget.tokens}, {budget.logit_positions} with logits"
                )

    def wait(self, request: Request, call: RequestContext, now: float) -> range:
        """Let the rows of a request wait, whose room is taken already: their keys."""
        keys = range(self._keys, self._keys + len(request.rows))
        self._keys = keys.stop
        rank, length = call.rank(now), self.scheduler.budget.shapes.length
        for number, (key, row) in enumerate(zip(keys, request.rows, strict=True)):
            self._owners[key] = request, number
            self.scheduler.add(
                Waiting(
                    key=key,
                    tokens=row.tokens,
                    length=length(row.tokens),
                    logit_positions=row.logit_positions,
                    rank=rank,
                    arrived=now,
                )
            )
        return keys

    def drop(self, keys: Sequence[int], reason: str) -> None:
        """Forget the rows of a caller who is gone. Those that are running run to their end, for nobody."""
        for key in keys:
            if (member := self.scheduler.drop(key)) is not None:
                del self._owners[key]
                self.gate.leave(requests=1, tokens=member.tokens)
                self._observer.dropped(reason)

    def rows(self, members: Sequence[Waiting]) -> list[Row]:
        owners = (self._owners[member.key] for member in members)
        return [request.rows[number] for request, number in owners]

    def take(self, planned: Sequence[Waiting], now: float) -> list[Waiting]:
        """The next batch, as the scheduler takes it, out of the queue. Empty if everybody is gone."""
        members = self.scheduler.take(planned)
        for member in members:
            self.gate.leave(requests=1, tokens=member.tokens, waited_s=now - member.arrived)
        return members

    def answer(self, members: Sequence[Waiting], answers: Sequence[Outputs], spent: Spent) -> None:
        """Hand out the answers of rows that were taken, which ran as one batch for so long."""
        owners = [self._owners.pop(member.key) for member in members]
        for request in {request for request, _ in owners}:
            request.work += spent
        for (request, number), answer in zip(owners, answers, strict=True):
            request.answer(number, answer)

    def fail(self, members: Sequence[Waiting], error: Exception) -> None:
        """Tell the callers of rows that were taken."""
        self._observer.failed(len(members))
        for member in members:
            request, _ = self._owners.pop(member.key)
            failure = RuntimeError(f"{self.gate.name}: a run of {len(members)} rows failed")
            failure.__cause__ = error
            request.fail(failure)

    def abort(self, error: Exception) -> None:
        """Tell all callers, who then drop their rows."""
        for request in {request for request, _ in self._owners.values()}:
            request.fail(error)
