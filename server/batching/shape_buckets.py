"""The shapes that batches are padded to, where a provider prepares itself anew for each shape that it has not seen.

OpenVINO makes kernels for a new length, but not for a new number of rows. On CUDA kernels are chosen, and memory is
kept, for each shape. The CPU provider takes every shape as it comes: there are no steps for it.
"""

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Steps, the lowest first. What is beyond the last of them, or has no steps, is not padded.

    >>> shapes = Shapes(lengths=steps_to(100, first=8))
    >>> shapes.lengths
    (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 100)
    >>> shapes.length(65), shapes.row_count(3)
    (80, 3)
    """

    lengths: tuple[int, ...] = ()  # of texts, in tokens
    row_counts: tuple[int, ...] = ()
    logit_counts: tuple[int, ...] = ()  # positions at which the language head is computed

    def length(self, tokens: int) -> int:
        return _step(self.lengths, tokens)

    def row_count(self, rows: int) -> int:
        return _step(self.row_counts, rows)

    def logit_count(self, logit_positions: int) -> int:
        return _step(self.logit_counts, logit_positions)


EXACT = Shapes()  # nothing is padded


def _step(steps: tuple[int, ...], value: int) -> int:
    place = bisect_left(steps, value)
    return steps[place] if place < len(steps) else value


def steps_to(most: int, *, first: int = 1) -> tuple[int, ...]:
    """Eight multiples of the first, and from there four to each doubling; the last is `most`.

    Beyond the eight, a value is padded by less than a quarter of itself, by a tenth on average.

    >>> steps_to(17)
    (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 17)
    """
    steps = [first * factor for factor in range(1, 9)]
    while steps[-1] < most:
        steps += [steps[-1] // 4 * factor for factor in (5, 6, 7, 8)]
    return (*(step for step in steps if step < most), most)
