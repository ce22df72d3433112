"""The waiting items of each call: whose turn it is, and how much work runs before a call that arrives now. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.admission.pace import Pace

NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """A waiting item, as the scheduler sees it."""

    key: int  # unique; the order of arrival among items of the same rank
    tokens: int
    length: int = 0  # its padded length in a batch of its own; at least its tokens
    logit_positions: int = 0  # positions at which the language head is computed
    rank: float = 0.0  # lowest first: server.admission.RequestContext.rank
    arrived: float = 0.0
    deadline: float = NEVER  # when its batch has to end at the latest
    call: int = -1  # the key of the first item of its call; by default its own

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", max(self.length, self.tokens))
        object.__setattr__(self, "call", self.key if self.call < 0 else self.call)


@dataclass(eq=False)
class Call:
    """The items of one call that wait."""

    rank: float  # of all of them, the lowest first
    priority_s: float  # what its priority adds to the time of its arrival
    deadline: float
    keys: set[int] = field(default_factory=set)  # of its items
    work: int = 0  # tokens, each item padded to its own length
    served: int = 0  # tokens since the call has its rank


class Calls:
    """The calls that have waiting items."""

    def __init__(self, *, quantum: int, pace: Pace) -> None:
        """A call goes behind the others after each `quantum` tokens, unless its deadline is too near for that."""
        self._quantum, self._pace = quantum, pace
        self._calls: dict[int, Call] = {}
        self._large: set[int] = set()  # calls of more than a quantum
        self._items = self._work = 0
        self._last_rank = -NEVER  # no call has a higher rank

    def __iter__(self) -> Iterator[Call]:
        return iter(self._calls.values())

    def turn(self, item: Waiting) -> tuple[float, int]:
        """The key by which waiting items are sorted: the lowest runs first."""
        return self._calls[item.call].rank, item.key

    def add(self, item: Waiting) -> None:
        """An item waits."""
        call = self._calls.get(item.call)
        if call is None:
            call = self._calls[item.call] = Call(item.rank, item.rank - item.arrived, item.deadline)
            self._last_rank = max(self._last_rank, item.rank)
        call.keys.add(item.key)
        call.work += item.length
        self._items += 1
        self._work += item.length
        if call.work > self._quantum:
            self._large.add(item.call)

    def remove(self, item: Waiting) -> None:
        """An item waits no longer."""
        call = self._calls[item.call]
        call.keys.remove(item.key)
        call.work -= item.length
        self._items -= 1
        self._work -= item.length
        if not call.keys:
            del self._calls[item.call]
            self._large.discard(item.call)

    def take(self, batch: Sequence[Waiting], now: float) -> None:
        """The items of a batch wait no longer: they run."""
        for item in batch:
            call = self._calls[item.call]
            call.served += item.length
            self.remove(item)
            if call.served >= self._quantum and call.keys and self._can_wait(call, now):
                call.rank, call.served = now + call.priority_s, 0
                self._last_rank = max(self._last_rank, call.rank)

    def _can_wait(self, call: Call, now: float) -> bool:
        """Whether a call may take turns with the others, and is still done in half of the time that it has."""
        _, tokens = self.ahead(call.work, NEVER)  # its own included
        return now + 2 * self._pace.seconds(tokens, batches=tokens / self._quantum) <= call.deadline

    def ahead(self, work: float, rank: float) -> tuple[float, float]:
        """How many items and tokens run before a call of so much work and this rank is done, without its own."""
        limit = max(work, self._quantum)
        if rank >= self._last_rank:
            items, tokens = float(self._items), float(self._work)
            calls = [call for key in list(self._large) if (call := self._calls.get(key))]
        else:
            items = tokens = 0.0
            calls = [call for call in list(self._calls.values()) if call.rank <= rank]
            for call in calls:
                items, tokens = items + len(call.keys), tokens + call.work
        for call in calls:
            later = max(0.0, 1 - limit / call.work)
            items, tokens = items - later * len(call.keys), tokens - later * call.work
        return items, tokens
