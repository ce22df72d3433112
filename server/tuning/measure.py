"""Measures two choices in turn, so that both meet the same disturbances. Knows no sessions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.concurrency.stop_signal import StopSignal
from server.tuning.search import Measurement, is_clear

MIN_ROUNDS, MAX_ROUNDS = 3, 15
ENOUGH_ROUNDS, ENOUGH_SECONDS = 5, 0.5  # a comparison ends when it has both
LONG_RUN_S = 0.1  # a longer run needs none before it to warm up
SHORT_RUN_S, MAX_REPEATS = 0.002, 16  # shorter runs are repeated and measured together


@dataclass(frozen=True)
class Workload:
    """Some work that a model does again and again. Two choices may divide it into runs of different sizes."""

    name: str
    run: Callable[[], object]
    work: float = 1.0  # of one run; times are compared for the same work


class TimeLimit:
    """A limit of the time from now on. Another thread may end the time early."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.ended = clock, False
        self._seconds, self._begun = seconds, clock()

    @property
    def spent(self) -> float:
        return self.clock() - self._begun

    @property
    def left(self) -> float:
        return 0.0 if self.ended else self._seconds - self.spent

    def restart(self) -> None:
        """Count from now on."""
        self._begun = self.clock()

    def end(self) -> None:
        self.ended = True


def compare(
    ours: Sequence[Workload], theirs: Sequence[Workload], *, limit: TimeLimit, stop: StopSignal
) -> list[Measurement]:
    """The times of the present choice (`ours`) and of the challenger in the same workloads, in this order.

    Returns nothing if the limit does not allow `MIN_ROUNDS` rounds. The order alternates from round to round,
    because the second of two sessions often runs faster. `stop` is checked between runs and raises.
    """
    clock, begun, check = limit.clock, limit.spent, stop.check
    pairs = list(zip(ours, theirs, strict=True))
    alone = [[_alone(workload, clock, check) for workload in pair] for pair in pairs]
    if MIN_ROUNDS * sum(map(sum, alone)) > limit.left:
        return []
    repeats = [max(1, min(MAX_REPEATS, int(SHORT_RUN_S / max(seconds)))) for seconds in alone]
    times: list[list[tuple[float, float]]] = [[] for _ in pairs]
    for number in range(MAX_ROUNDS):
        for (first, second), count, measured in zip(pairs, repeats, times, strict=True):
            if number % 2:
                seconds = _seconds(second, count, clock, check), _seconds(first, count, clock, check)
                measured.append((seconds[1], seconds[0]))
            else:
                measured.append((_seconds(first, count, clock, check), _seconds(second, count, clock, check)))
        done, found = number + 1, _measurements(ours, times)
        enough = done >= ENOUGH_ROUNDS and limit.spent - begun >= ENOUGH_SECONDS
        if enough or limit.left <= 0 or (done >= MIN_ROUNDS and is_clear(found)):
            break
    return found if done >= MIN_ROUNDS else []


def _measurements(workloads: Sequence[Workload], times: Sequence[list[tuple[float, float]]]) -> list[Measurement]:
    return [Measurement(each.name, tuple(pairs)) for each, pairs in zip(workloads, times, strict=True)]


def _alone(workload: Workload, clock: Callable[[], float], check: Callable[[], None]) -> float:
    """Warm up, and return the seconds of a run: the first one if it is so long that warming up hardly counts."""
    first = _timed(workload, 1, clock, check)
    return first if first > LONG_RUN_S else _timed(workload, 1, clock, check)


def _seconds(workload: Workload, count: int, clock: Callable[[], float], check: Callable[[], None]) -> float:
    """The time for a unit of work, in seconds."""
    return _timed(workload, count, clock, check) / (count * workload.work)


def _timed(workload: Workload, count: int, clock: Callable[[], float], check: Callable[[], None]) -> float:
    check()
    begun = clock()
    for _ in range(count):
        workload.run()
    return max(clock() - begun, 1e-9)
