"""A limit on the requests per second of each caller. Pure: the time is an argument."""

from server.errors import Overloaded

MIN_SWEEP = 1024  # callers; idle ones are forgotten when there are twice as many as after the last time


class RateLimit:
    """A token bucket for each caller: the tokens of one second at most, and one for each request.

    Only callers of the last second or so are in memory: a full bucket is the same as none.

    >>> limit = RateLimit(per_second=2)
    >>> limit.take("alice", now=0.0), limit.take("alice", now=0.0), limit.take("bob", now=0.0)
    (None, None, None)
    >>> limit.take("alice", now=0.25)
    Traceback (most recent call last):
    server.errors.Overloaded: found more than 2 requests per second from alice; retry in 0.25 s
    >>> limit.take("alice", now=0.5)
    """

    def __init__(self, per_second: float) -> None:
        """A rate below 1 lets a request through every 1 / `per_second` seconds."""
        self._per_second = per_second
        self._interval_s = 1 / per_second  # until a token is added
        self._capacity_s = max(1.0, per_second) * self._interval_s  # until an empty bucket is full
        self._full_at: dict[str, float] = {}  # by caller: when the bucket will be full again
        self._sweep_at = MIN_SWEEP

    def take(self, caller: str, now: float) -> None:
        """Take a token of the caller. Raises Overloaded, and takes nothing, if there is none."""
        full_at = max(self._full_at.get(caller, now), now) + self._interval_s
        wait_s = full_at - self._capacity_s - now
        if wait_s > 1e-9:
            found = f"found more than {self._per_second:g} requests per second from {caller}"
            raise Overloaded(f"{found}; retry in {wait_s:.3g} s", retry_after_s=wait_s)
        self._full_at[caller] = full_at
        if len(self._full_at) >= self._sweep_at:
            self._sweep(now)

    def _sweep(self, now: float) -> None:
        self._full_at = {caller: full_at for caller, full_at in self._full_at.items() if full_at > now}
        self._sweep_at = max(MIN_SWEEP, 2 * len(self._full_at))
