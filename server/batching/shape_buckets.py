"""Shape buckets: the shapes that batches are padded to, for providers that compile or allocate for each new shape.

OpenVINO compiles kernels for a new length, but not for a new batch size. CUDA selects kernels and keeps memory for
each shape. The CPU provider needs no buckets.
"""

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The bucket sizes, in ascending order. A value beyond the last, or without buckets, is not padded.

    >>> shapes = Shapes(lengths=steps_to(100, first=8))
    >>> shapes.lengths
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100)
    >>> shapes.length(65), shapes.batch_size(3)
    (80, 3)
    """

    lengths: tuple[int, ...] = ()  # of texts, in tokens
    batch_sizes: tuple[int, ...] = ()
    logit_counts: tuple[int, ...] = ()  # positions at which the language head runs

    def length(self, tokens: int) -> int:
        return _step(self.lengths, tokens)

    def batch_size(self, items: int) -> int:
        return _step(self.batch_sizes, items)

    def logit_count(self, logit_positions: int) -> int:
        return _step(self.logit_counts, logit_positions)


EXACT = Shapes()  # nothing is padded


def _step(steps: tuple[int, ...], value: int) -> int:
    index = bisect_left(steps, value)
    return steps[index] if index < len(steps) else value


def steps_to(last: int, *, first: int = 1) -> tuple[int, ...]:
    """Eight multiples of the first, and from there four to each doubling; the last step is `last`.

    Beyond the eight, a value is padded by less than a quarter of itself, by a tenth on average.

    >>> steps_to(17)
    (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 17)
    """
    steps = [first * factor for factor in range(1, 9)]
    while steps[-1] < last:
        steps += [steps[-1] // 4 * factor for factor in (5, 6, 7, 8)]
    return (*(step for step in steps if step < last), last)
