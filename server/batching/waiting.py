"""The waiting items of each request: which runs next, and how much work runs before a new request. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from server.admission.pace import Pace

NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class WaitingItem:
    """An item of a request, as the scheduler sees it."""

    key: int  # unique; the order of arrival among items of the same rank
    tokens: int
    length: int = 0  # its padded length in a batch of its own; at least its tokens
    logit_positions: int = 0  # positions at which the language head is computed
    rank: float = 0.0  # lowest first: server.admission.RequestContext.rank
    arrived: float = 0.0
    deadline: float = NEVER  # when its batch has to end at the latest
    request_key: int = -1  # the key of the first item of its request; by default its own

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", max(self.length, self.tokens))
        object.__setattr__(self, "request_key", self.key if self.request_key < 0 else self.request_key)


@dataclass(eq=False)
class WaitingRequest:
    """The items of one request that wait."""

    rank: float  # of all of them, the lowest first
    priority_s: float  # what its priority adds to the time of its arrival
    deadline: float
    keys: set[int] = field(default_factory=set)  # of its items
    work: int = 0  # tokens, each item padded to its own length
    served: int = 0  # tokens since the request has its rank


class WaitingRequests:
    """The requests that have waiting items."""

    def __init__(self, *, quantum: int, pace: Pace) -> None:
        """After each `quantum` tokens a request goes behind the others, unless its deadline is too near for that."""
        self._quantum, self._pace = quantum, pace
        self._requests: dict[int, WaitingRequest] = {}
        self._large: set[int] = set()  # requests of more than a quantum
        self._items = self._work = 0
        self._last_rank = -NEVER  # no request has a higher rank

    def __iter__(self) -> Iterator[WaitingRequest]:
        return iter(self._requests.values())

    def turn(self, item: WaitingItem) -> tuple[float, int]:
        """The key by which waiting items are sorted: the lowest runs first."""
        return self._requests[item.request_key].rank, item.key

    def add(self, item: WaitingItem) -> None:
        """Add an item to its request."""
        request = self._requests.get(item.request_key)
        if request is None:
            request = WaitingRequest(item.rank, item.rank - item.arrived, item.deadline)
            self._requests[item.request_key] = request
            self._last_rank = max(self._last_rank, item.rank)
        request.keys.add(item.key)
        request.work += item.length
        self._items += 1
        self._work += item.length
        if request.work > self._quantum:
            self._large.add(item.request_key)

    def remove(self, item: WaitingItem) -> None:
        """Remove an item, and its request with the last one."""
        request = self._requests[item.request_key]
        request.keys.remove(item.key)
        request.work -= item.length
        self._items -= 1
        self._work -= item.length
        if not request.keys:
            del self._requests[item.request_key]
            self._large.discard(item.request_key)

    def take(self, batch: Sequence[WaitingItem], now: float) -> None:
        """Remove the items of a batch that runs now. Requests that have had their turn go behind the others."""
        for item in batch:
            request = self._requests[item.request_key]
            request.served += item.length
            self.remove(item)
            if request.served >= self._quantum and request.keys and self._can_wait(request, now):
                request.rank, request.served = now + request.priority_s, 0
                self._last_rank = max(self._last_rank, request.rank)

    def _can_wait(self, request: WaitingRequest, now: float) -> bool:
        """Whether a request that takes turns with the others is still done in half of the time that it has."""
        _, tokens = self.ahead(request.work, NEVER)  # its own included
        return now + 2 * self._pace.seconds(tokens, batches=tokens / self._quantum) <= request.deadline

    def ahead(self, work: float, rank: float) -> tuple[float, float]:
        """The items and tokens of other requests that run before a request of this size and rank has finished.

        Requests take turns after each quantum, so of a larger request only as much counts as this one is long.
        """
        limit = max(work, self._quantum)
        if rank >= self._last_rank:  # after all others: only large requests do not count in full
            items, tokens = float(self._items), float(self._work)
            requests = [request for key in list(self._large) if (request := self._requests.get(key))]
        else:
            items = tokens = 0.0
            requests = [request for request in list(self._requests.values()) if request.rank <= rank]
            for request in requests:
                items, tokens = items + len(request.keys), tokens + request.work
        for request in requests:
            later = max(0.0, 1 - limit / request.work)  # the share of its work that runs after the new request
            items, tokens = items - later * len(request.keys), tokens - later * request.work
        return items, tokens
