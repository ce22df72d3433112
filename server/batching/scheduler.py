"""Chooses which waiting items run together. Pure: no clock, no thread, no tensor; the time is an argument.

A batch starts with the item of the lowest rank and is filled with the items nearest to it in length: its cost is the
longest length times the number of items, so items of very different lengths would waste it on padding. Every batch
takes the item of the lowest rank, so an item waits for at most as many batches as there are items before it.

A request with more items than fit into a batch is served a batch at a time: after each, its other items go behind the
requests that have arrived meanwhile. So a request of one item waits for at most one batch of each request before it.
(Deficit round robin, Shreedhar and Varghese 1995, with a batch as the quantum.)

A batch takes an item only if the whole batch is predicted to end before the deadline of each of its items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.admission.pace import Pace
from server.batching.shape_buckets import EXACT, Shapes
from server.batching.waiting import NEVER, WaitingItem, WaitingRequests


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one batch."""

    items: int
    tokens: int  # padding included
    logit_positions: int  # positions at which the language head runs: each yields a row as wide as the vocabulary
    padding: float = 0.08  # the largest share of padding
    free_tokens: int = 0  # up to this size padding is ignored: the batch costs the same
    shapes: Shapes = EXACT

    def __post_init__(self) -> None:
        if min(self.items, self.tokens, self.logit_positions) < 1:
            raise ValueError(f"budget of a batch: found {self}, expected at least one item, token and logit position")

    def fits_alone(self, *, tokens: int, logit_positions: int) -> bool:
        return tokens <= self.tokens and logit_positions <= self.logit_positions


@dataclass
class _Batch:
    """A batch while it is being filled. It has to end at `deadline`."""

    budget: Budget
    pace: Pace
    now: float
    members: list[WaitingItem] = field(default_factory=list)
    longest: int = 0
    lengths: int = 0
    logit_positions: int = 0
    deadline: float = NEVER

    def takes(self, item: WaitingItem) -> bool:
        """Whether the batch with this item stays within the budget."""
        budget, items, longest = self.budget, len(self.members) + 1, max(self.longest, item.length)
        padded = items * longest
        if items > budget.items or self.logit_positions + item.logit_positions > budget.logit_positions:
            return False
        if budget.shapes.batch_size(items) * longest > budget.tokens:
            return False
        return padded <= budget.free_tokens or padded - self.lengths - item.length <= budget.padding * padded

    def in_time(self, item: WaitingItem) -> bool:
        """Whether the batch with this item ends before the deadline of each of its items."""
        padded = (len(self.members) + 1) * max(self.longest, item.length)
        return self.now + self.pace.seconds(padded) <= min(self.deadline, item.deadline)

    def add(self, item: WaitingItem) -> None:
        self.members.append(item)
        self.longest = max(self.longest, item.length)
        self.lengths += item.length
        self.logit_positions += item.logit_positions
        self.deadline = min(self.deadline, item.deadline)


class Scheduler:
    """The waiting items of one model.

    >>> scheduler = Scheduler(Budget(items=8, tokens=64, logit_positions=64))
    >>> for key, tokens in enumerate((16, 3, 15, 16)):
    ...     scheduler.add(WaitingItem(key=key, tokens=tokens))
    >>> [item.key for item in scheduler.take(0.0)], [item.key for item in scheduler.take(0.0)]
    ([0, 3, 2], [1])
    """

    def __init__(self, budget: Budget, *, max_delay_s: float = 0.0, pace: Pace | None = None) -> None:
        self.budget = budget
        self.max_delay_s = max_delay_s
        self.pace = pace or Pace()
        self.requests = WaitingRequests(quantum=budget.tokens, pace=self.pace)
        self._waiting: dict[int, WaitingItem] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: WaitingItem) -> None:
        """Add a waiting item. It must fit into a batch of its own: the queue refuses larger ones."""
        assert self.budget.fits_alone(tokens=item.tokens, logit_positions=item.logit_positions), (
            f"{item} can never run; this is a bug"
        )
        assert item.key not in self._waiting, f"{item} is waiting already; this is a bug"
        self._waiting[item.key] = item
        self.requests.add(item)

    def drop(self, key: int) -> WaitingItem | None:
        """Remove and return an item; None if it is not waiting."""
        if (item := self._waiting.pop(key, None)) is not None:
            self.requests.remove(item)
        return item

    def due(self, now: float) -> float:
        """The number of seconds until the next batch is due: 0 for now, infinity if nothing is waiting."""
        if not self._waiting:
            return NEVER
        if self.max_delay_s <= 0 or self._full(self.plan(now)):
            return 0.0
        return max(0.0, min(item.arrived for item in self._waiting.values()) + self.max_delay_s - now)

    def take(self, now: float, planned: Sequence[WaitingItem] = ()) -> list[WaitingItem]:
        """Remove and return the next batch; empty if nothing is waiting.

        Returns the planned batch unless one of its items is gone or would be late, another item is first by now, or a
        larger batch is possible.
        """
        batch = self.plan(now)
        if self._is_as_good(planned, batch, now):
            batch = list(planned)
        for item in batch:
            del self._waiting[item.key]
        self.requests.take(batch, now)
        return batch

    def _is_as_good(self, planned: Sequence[WaitingItem], batch: Sequence[WaitingItem], now: float) -> bool:
        same_leader = list(planned[:1]) == list(batch[:1])
        return (
            same_leader
            and all(item.key in self._waiting for item in planned)
            and tokens_of(planned) >= tokens_of(batch)
            and (len(planned) < 2 or self._in_time(planned, now))
        )

    def _in_time(self, batch: Sequence[WaitingItem], now: float) -> bool:
        return now + self.pace.seconds(work_of(batch)) <= min(item.deadline for item in batch)

    def plan(self, now: float) -> list[WaitingItem]:
        """The batch that `take` would return now, the item of the lowest rank first."""
        if not self._waiting:
            return []
        leader = min(self._waiting.values(), key=self.requests.turn)
        batch = _Batch(self.budget, self.pace, now)
        batch.add(leader)
        # Both lists end with the item nearest in length, and among equals with the one whose turn is first.
        shorter, longer = self._neighbours(leader)
        while shorter or longer:
            shorter_first = bool(shorter) and (
                not longer or _padding(batch, shorter[-1]) <= _padding(batch, longer[-1])
            )
            side = shorter if shorter_first else longer
            if not batch.takes(side[-1]):
                side.clear()  # the remaining ones are even farther away
                continue
            item = side.pop()
            if batch.in_time(item):
                batch.add(item)
        return batch.members

    def _neighbours(self, leader: WaitingItem) -> tuple[list[WaitingItem], list[WaitingItem]]:
        """The other items, shorter and longer than the leader, the nearest in length last."""
        turn = self.requests.turn
        others = [item for item in self._waiting.values() if item is not leader]
        shorter = [item for item in others if item.length < leader.length]
        longer = [item for item in others if item.length >= leader.length]
        shorter.sort(key=lambda item: (-item.length, turn(item)), reverse=True)
        longer.sort(key=lambda item: (item.length, turn(item)), reverse=True)
        return shorter, longer

    def _full(self, batch: list[WaitingItem]) -> bool:
        """Whether one more item of the longest length would not fit."""
        longest, budget = max(item.length for item in batch), self.budget
        return len(batch) >= budget.items or budget.shapes.batch_size(len(batch) + 1) * longest > budget.tokens


def tokens_of(items: Sequence[WaitingItem]) -> int:
    return sum(item.tokens for item in items)


def work_of(items: Sequence[WaitingItem]) -> int:
    """The tokens of a batch, padding between its items included."""
    return len(items) * max(item.length for item in items)


def _padding(batch: _Batch, item: WaitingItem) -> int:
    """The padding that an item adds: its own, or that of all others if it is the longest."""
    return max(batch.longest - item.length, len(batch.members) * (item.length - batch.longest))
