"""Admission control and request order, for encoders and generation alike. Pure: the time is an argument."""

import math
from dataclasses import dataclass, field
from typing import Literal

from server.errors import DeadlineExceeded, InvalidRequest, Overloaded

CancelReason = Literal["expired", "cancelled", "slow_client"]

DEFAULT_PRIORITY = 5
SECONDS_PER_PRIORITY = 1.0  # one level lower counts as arriving one second later, so no request starves
MIN_RETRY_S, MAX_RETRY_S = 0.05, 30.0


@dataclass(eq=False)
class Cancellation:
    """Why the server itself cancelled a call, or None. All requests of the call share it."""

    reason: CancelReason | None = None


@dataclass(frozen=True, kw_only=True)
class RequestContext:
    """Deadline and priority of one request, and the cancellation of its call."""

    deadline: float | None = None  # on time.monotonic()'s clock
    leeway_s: float = 0.0  # a cancellation this long before the deadline counts as its expiry
    priority: int = 0  # 1 is the highest, 0 means the default
    cancellation: Cancellation = field(default_factory=Cancellation, compare=False)

    def __post_init__(self) -> None:
        if self.priority < 0:
            raise InvalidRequest("priority", str(self.priority), "1 (the highest) or more, or 0 for the default")

    def expired(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    @property
    def answer_by(self) -> float:
        """When the answer has to leave the server to reach the client in time; infinity without a deadline."""
        return math.inf if self.deadline is None else self.deadline - self.leeway_s

    def time_left(self, now: float, *, max_wait_s: float) -> tuple[float, str]:
        """The seconds until the answer is due (the start, without a deadline), and words that say so in an error."""
        if self.deadline is None:
            return max_wait_s, f"it may wait for {max_wait_s:.1f} s"
        left_s = self.answer_by - now
        return left_s, f"its deadline is in {left_s:.1f} s"

    def cancel_reason(self, now: float) -> CancelReason:
        """The reason if the call is cancelled now: its deadline, its client or the server."""
        if self.cancellation.reason is not None:
            return self.cancellation.reason
        return "expired" if self.deadline is not None and now >= self.deadline - self.leeway_s else "cancelled"

    def check_deadline(self, now: float) -> None:
        """Raise DeadlineExceeded if the deadline has passed."""
        if self.expired(now):
            raise DeadlineExceeded("the deadline of the request had passed before it could run")

    def rank(self, now: float) -> float:
        """The rank of a request that arrives `now`: arrival time shifted by priority. The lowest runs first."""
        return now + SECONDS_PER_PRIORITY * (self.priority or DEFAULT_PRIORITY)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The capacity of a queue over all callers, and the share of it that one request may have."""

    inputs: int
    tokens: int
    request_inputs: int = 0  # of one request; 0: as many as the queue can hold
    request_tokens: int = 0

    @property
    def max_inputs(self) -> int:
        """The inputs of one request."""
        return min(self.request_inputs or self.inputs, self.inputs)

    @property
    def max_tokens(self) -> int:
        """The tokens of one request."""
        return min(self.request_tokens or self.tokens, self.tokens)

    def __post_init__(self) -> None:
        if self.inputs < 1 or self.tokens < 1:
            raise ValueError(f"limits of a queue: found {self}, expected at least 1 of each")

    def check(self, *, inputs: int, tokens: int = 0, field: str) -> None:
        """Raise InvalidRequest if a request is larger than one may be."""
        if inputs > self.max_inputs or tokens > self.max_tokens:
            found = f"{inputs} inputs" if inputs > self.max_inputs else f"{tokens} tokens together"
            expected = f"at most {self.max_inputs} inputs and {self.max_tokens} tokens in a request"
            raise InvalidRequest(field, found, expected)


class AdmissionQueue:
    """Counts the waiting inputs and tokens, and refuses requests that exceed the limits.

    >>> queue = AdmissionQueue("bert", Limits(inputs=2, tokens=100))
    >>> queue.acquire(inputs=1, tokens=60)
    >>> queue.acquire(inputs=1, tokens=60)
    Traceback (most recent call last):
    server.errors.Overloaded: the queue of bert is full: 1 of 2 inputs and 60 of 100 tokens wait, so 1 and 60 do not fit
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.inputs = 0
        self.tokens = 0
        self._typical_wait_s = MIN_RETRY_S

    def acquire(self, *, inputs: int, tokens: int, field: str = "request") -> None:
        """Take a share of the queue. Raises InvalidRequest if it can never fit, Overloaded if it does not fit now."""
        limits = self.limits
        limits.check(inputs=inputs, tokens=tokens, field=field)
        if self.inputs + inputs > limits.inputs or self.tokens + tokens > limits.tokens:
            raise Overloaded(
                f"the queue of {self.name} is full: {self.inputs} of {limits.inputs} inputs and {self.tokens} of "
                f"{limits.tokens} tokens wait, so {inputs} and {tokens} do not fit",
                retry_after_s=self.retry_after_s,
            )
        self.inputs += inputs
        self.tokens += tokens

    def release(self, *, inputs: int, tokens: int, waited_s: float | None = None) -> None:
        """Return a share. `waited_s` is the time until it was served, None if it was dropped."""
        self.inputs -= inputs
        self.tokens -= tokens
        assert self.inputs >= 0, f"{self.name}: released more than was acquired; this is a bug"
        if waited_s is not None and math.isfinite(waited_s):
            self._typical_wait_s += 0.1 * (waited_s - self._typical_wait_s)

    @property
    def retry_after_s(self) -> float:
        """How long to wait before a retry: the typical waiting time of recent requests, within bounds."""
        return min(max(self._typical_wait_s, MIN_RETRY_S), MAX_RETRY_S)
