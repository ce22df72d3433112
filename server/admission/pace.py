"""How long work takes and how far predictions are off, learnt from what was done. Pure: the time is an argument."""

import math
from collections.abc import Hashable

MEMORY_S = 0.5  # of work: older measurements fade, so that predictions follow a change of speed within a second
STALE_S = 1.0  # after so long without a measurement the speed may have changed
MAX_SLOWDOWN = 100.0


class Pace:
    """The time of a batch of `work` units: a fixed part and a part for each unit, fitted by weighted least squares.

    >>> pace = Pace()
    >>> for work, seconds in ((100, 0.2), (300, 0.4), (100, 0.2), (200, 0.3)):
    ...     pace.record(work, seconds, now=0.0)
    >>> round(pace.seconds(400), 3), round(pace.seconds(400, batches=2), 3)
    (0.5, 0.6)
    """

    def __init__(self) -> None:
        self._n = self._x = self._y = self._xx = self._xy = 0.0  # weighted sums: batches, work, seconds, and products
        self._fixed_s = self._unit_s = 0.0
        self._running: dict[Hashable, tuple[float, float]] = {}  # work, and when it began
        self._measured = -math.inf

    @property
    def running(self) -> int:
        """The number of batches that run now."""
        return len(self._running)

    def stale(self, now: float) -> bool:
        """Whether the last measurement is too old to refuse all work because of it."""
        return now - self._measured > STALE_S

    def start(self, key: Hashable, work: float, now: float) -> None:
        """A batch begins."""
        self._running[key] = work, now

    def finish(self, key: Hashable, now: float, *, failed: bool = False) -> None:
        """A batch has ended. The time of a failed one is not learnt."""
        work, begun = self._running.pop(key)
        if not failed:
            self.record(work, now - begun, now)

    def record(self, work: float, seconds: float, now: float) -> None:
        """Learn from a batch."""
        kept = math.exp(-seconds / MEMORY_S)
        self._n = kept * self._n + 1
        self._x = kept * self._x + work
        self._y = kept * self._y + seconds
        self._xx = kept * self._xx + work * work
        self._xy = kept * self._xy + work * seconds
        self._measured = now
        spread = self._n * self._xx - self._x * self._x  # n² times the variance of the sizes
        per_unit = self._y / self._x
        if spread > 0.01 * self._x * self._x:
            slope = (self._n * self._xy - self._x * self._y) / spread
            self._unit_s = min(max(slope, 0.0), per_unit)
        else:  # batches of one size do not show the fixed part
            self._unit_s = per_unit
        self._fixed_s = max(0.0, (self._y - self._unit_s * self._x) / self._n)

    def seconds(self, work: float, *, batches: float = 1.0) -> float:
        """The predicted time of `work` units in this number of batches; 0 before the first measurement."""
        return self._fixed_s * batches + self._unit_s * work

    def slowdown(self, now: float) -> float:
        """By how much batches take longer than predicted, judging from those that run now; at least 1."""
        worst = 1.0
        for work, begun in list(self._running.values()):
            if (seconds := self.seconds(work)) > 0:
                worst = max(worst, (now - begun) / seconds)
        return min(worst, MAX_SLOWDOWN)

    def remaining(self, now: float) -> float:
        """The predicted seconds of work left in the batches that run now, together."""
        return sum(max(0.0, self.seconds(work) - (now - begun)) for work, begun in list(self._running.values()))


class LatenessEstimate:
    """By how much answers come later than predicted: the mean and the mean deviation.

    The estimator of round-trip times in TCP (Jacobson, "Congestion Avoidance and Control", 1988).
    """

    def __init__(self) -> None:
        self._mean_s = self._deviation_s = 0.0

    def record(self, seconds: float) -> None:
        """Learn from an answer that came `seconds` later than predicted; negative: earlier."""
        deviation = seconds - self._mean_s
        self._mean_s += deviation / 8
        self._deviation_s += (abs(deviation) - self._deviation_s) / 4

    @property
    def margin_s(self) -> float:
        """The seconds to add to a prediction so that few answers come later."""
        return max(0.0, self._mean_s + 2 * self._deviation_s)
