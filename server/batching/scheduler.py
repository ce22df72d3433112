"""Which of the waiting rows run together. Pure: no clock, no thread, no tensor; the time is an argument.

A batch is led by the row whose turn it is, and filled with those nearest to it in length: a batch costs its longest
row times the number of rows, so that neighbours of other lengths would be padding. Since every batch takes the row
whose turn it is, a row waits for at most as many batches as there are rows before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.batching.shape_buckets import EXACT, Shapes

NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A row as the scheduler sees it."""

    key: int  # names it; the order of arrival among rows of the same rank
    tokens: int
    length: int = 0  # what it is padded to if it runs alone; no less than its tokens
    logit_positions: int = 0  # positions at which the language head is computed
    rank: float = 0.0  # lowest first: server.admission.RequestContext.rank
    arrived: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", max(self.length, self.tokens))

    @property
    def turn(self) -> tuple[float, int]:
        return self.rank, self.key


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one batch may cost."""

    rows: int
    tokens: int  # padding included
    logit_positions: int  # positions at which the language head is computed: each is as wide as the vocabulary
    padding: float = 0.08  # the share of padding up to which rows of different lengths run together
    free_tokens: int = 0  # up to which a batch costs no more for being larger, so that padding does not matter
    shapes: Shapes = EXACT

    def __post_init__(self) -> None:
        if min(self.rows, self.tokens, self.logit_positions) < 1:
            raise ValueError(f"budget of a batch: found {self}, expected at least one row, token and head")

    def fits_alone(self, *, tokens: int, logit_positions: int) -> bool:
        return tokens <= self.tokens and logit_positions <= self.logit_positions


@dataclass
class _Batch:
    """A batch that grows."""

    budget: Budget
    members: list[Waiting] = field(default_factory=list)
    longest: int = 0
    lengths: int = 0  # of all together: what they cost if each runs alone
    logit_positions: int = 0

    def takes(self, row: Waiting) -> bool:
        budget, rows, longest = self.budget, len(self.members) + 1, max(self.longest, row.length)
        padded = rows * longest
        if rows > budget.rows or self.logit_positions + row.logit_positions > budget.logit_positions:
            return False
        if budget.shapes.row_count(rows) * longest > budget.tokens:
            return False
        return padded <= budget.free_tokens or padded - self.lengths - row.length <= budget.padding * padded

    def add(self, row: Waiting) -> None:
        self.members.append(row)
        self.longest = max(self.longest, row.length)
        self.lengths += row.length
        self.logit_positions += row.logit_positions


class Scheduler:
    """The rows that wait for one model.

    >>> scheduler = Scheduler(Budget(rows=8, tokens=64, heads=64))
    >>> for key, tokens in enumerate((16, 3, 15, 16)):
    ...     scheduler.add(Waiting(key=key, tokens=tokens))
    >>> [row.key for row in scheduler.take()], [row.key for row in scheduler.take()]
    ([0, 3, 2], [1])
    """

    def __init__(self, budget: Budget, *, max_delay_s: float = 0.0) -> None:
        self.budget = budget
        self.max_delay_s = max_delay_s
        self._waiting: dict[int, Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, row: Waiting) -> None:
        """Let a row wait. It must fit into a batch of its own: what can never run is refused at the door."""
        assert self.budget.fits_alone(tokens=row.tokens, logit_positions=row.logit_positions), (
            f"{row} can never run; this is a bug"
        )
        assert row.key not in self._waiting, f"{row} waits already; this is a bug"
        self._waiting[row.key] = row

    def drop(self, key: int) -> Waiting | None:
        """Forget a row; None if it does not wait (any more)."""
        return self._waiting.pop(key, None)

    def due(self, now: float) -> float:
        """In how many seconds the next batch should be taken: 0 for now, infinity for not at all."""
        if not self._waiting:
            return NEVER
        if self.max_delay_s <= 0 or self._full(self.plan()):
            return 0.0
        return max(0.0, min(row.arrived for row in self._waiting.values()) + self.max_delay_s - now)

    def take(self, planned: Sequence[Waiting] = ()) -> list[Waiting]:
        """The next batch, which waits no longer; empty if nothing waits.

        It is what was planned before, unless one of those is gone, another's turn has come, or more can run by now.
        """
        batch = self.plan()
        if self._is_as_good(planned, batch):
            batch = list(planned)
        for row in batch:
            del self._waiting[row.key]
        return batch

    def _is_as_good(self, planned: Sequence[Waiting], batch: Sequence[Waiting]) -> bool:
        same_leader = list(planned[:1]) == list(batch[:1])
        return same_leader and self._all_wait(planned) and tokens_of(planned) >= tokens_of(batch)

    def _all_wait(self, rows: Sequence[Waiting]) -> bool:
        return all(row.key in self._waiting for row in rows)

    def plan(self) -> list[Waiting]:
        """What `take` would give now. The first of them is the one whose turn it is."""
        if not self._waiting:
            return []
        leader = min(self._waiting.values(), key=lambda row: row.turn)
        batch = _Batch(self.budget)
        batch.add(leader)
        # Both lists begin with what is nearest in length, and among equals with the one whose turn is first.
        shorter, longer = self._neighbours(leader)
        while shorter or longer:
            shorter_first = bool(shorter) and (
                not longer or _padding(batch, shorter[-1]) <= _padding(batch, longer[-1])
            )
            side = shorter if shorter_first else longer
            if batch.takes(side[-1]):
                batch.add(side.pop())
            else:
                side.clear()  # those behind are farther away still
        return batch.members

    def _neighbours(self, leader: Waiting) -> tuple[list[Waiting], list[Waiting]]:
        """The other rows, shorter and longer than the leader, the nearest in length last."""
        others = [row for row in self._waiting.values() if row is not leader]
        shorter = [row for row in others if row.length < leader.length]
        longer = [row for row in others if row.length >= leader.length]
        shorter.sort(key=lambda row: (-row.length, row.turn), reverse=True)
        longer.sort(key=lambda row: (row.length, row.turn), reverse=True)
        return shorter, longer

    def _full(self, batch: list[Waiting]) -> bool:
        """Whether another row like the longest of them would not fit."""
        longest, budget = max(row.length for row in batch), self.budget
        return len(batch) >= budget.rows or budget.shapes.row_count(len(batch) + 1) * longest > budget.tokens


def tokens_of(rows: Sequence[Waiting]) -> int:
    return sum(row.tokens for row in rows)


def _padding(batch: _Batch, row: Waiting) -> int:
    """The padding that a row would bring: its own, or that of all others if it is the longest."""
    return max(batch.longest - row.length, len(batch.members) * (row.length - batch.longest))
