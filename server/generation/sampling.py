"""Draw a column in each row of scores: from the likeliest few in order, or from a whole vocabulary in any order.

Knows nothing of requests. Filters in this order, each on what the one before left, as `transformers` does it: `top_k`
columns, the shortest run of the likeliest that has `top_p` of the probability, of these the ones with `min_p` times the
largest probability. What is drawn in a row depends on that row alone.
"""

import numpy as np
from numpy.typing import NDArray

from server.arrays import Floats, Ids

Doubles = NDArray[np.float64]

BLOCK = 256  # columns of which the sum is taken first


def draw(scores: Floats, *, temperature: Doubles, top_k: Ids, top_p: Doubles, min_p: Doubles, uniforms: Doubles) -> Ids:
    """The column drawn in each row of `scores` (n, c), which are in descending order; everything else is (n,)."""
    with np.errstate(over="ignore"):  # the weight of -inf is 0, the largest is 1
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature[:, None])  # (n, c)
    weights[np.arange(scores.shape[1]) >= top_k[:, None]] = 0
    sums = weights.cumsum(axis=1)
    beyond = (sums - weights >= top_p[:, None] * sums[:, -1:]) & (top_p[:, None] < 1)
    weights[beyond | (weights < min_p[:, None])] = 0
    sums = weights.cumsum(axis=1)
    return _where(sums, uniforms * sums[:, -1])


def draw_from_all(
    scores: Floats, *, temperature: Doubles, top_k: Ids, top_p: Doubles, min_p: Doubles, uniforms: Doubles
) -> Ids:
    """The column drawn in each row of `scores` (n, c) in any order; of several equal ones all or none are considered.

    Nothing but a row's filters sorts anything, and that only what may pass them.
    """
    count, columns = scores.shape
    blocks = -(-columns // BLOCK)
    weights = np.zeros((count, blocks * BLOCK), np.float32)
    used = weights[:, :columns]
    with np.errstate(over="ignore"):  # the weight of -inf is 0
        np.subtract(scores, scores.max(axis=1, keepdims=True), out=used)
        if (temperature != 1).any():
            used /= temperature[:, None].clip(1e-30, 1e30).astype(np.float32)  # neither 0 nor infinite in 32 bits
    np.exp(used, out=used)  # the largest is 1
    limits = zip(used, top_k.tolist(), top_p.tolist(), min_p.tolist(), strict=True)
    least = np.array([_least(row, *limit) for row, *limit in limits], np.float32)
    if least.any():
        used[used < least[:, None]] = 0
    sums = weights.reshape(count, blocks, BLOCK).sum(axis=2).cumsum(axis=1, dtype=np.float64)  # (n, blocks)
    targets = uniforms * sums[:, -1]
    rows, block = np.arange(count), _where(sums, targets)
    before = np.where(block, sums[rows, block - 1], 0.0)
    inside = weights.reshape(count, blocks, BLOCK)[rows, block].cumsum(axis=1, dtype=np.float64)  # (n, BLOCK)
    return block * BLOCK + _where(inside, targets - before)


def _where(sums: Doubles, targets: Doubles) -> Ids:
    """The first column of each row with which the sum exceeds the target; the last with a weight, if none does."""
    columns = np.count_nonzero(sums <= targets[:, None], axis=1)
    # A number just below 1 can be rounded up to the whole sum: then it means the last column that is left.
    return np.asarray(np.minimum(columns, np.count_nonzero(sums < sums[:, -1:], axis=1)))


def _least(weights: Floats, top_k: int, top_p: float, min_p: float) -> float:
    """The smallest weight (of at most 1) that passes the filters; 0 if all do."""
    least = min_p
    if top_k < len(weights):
        weights = np.partition(weights, -top_k)[-top_k:]
        least = max(least, float(weights[0]))
    if top_p < 1:
        total = float(weights.sum(dtype=np.float64))
        # All that are smaller than this have together no more than what is cut off.
        weights = weights[weights >= (1 - top_p) * total / len(weights)]
        weights = np.sort(weights)[::-1]
        last = int(np.searchsorted(weights.cumsum(dtype=np.float64), top_p * total))
        least = max(least, float(weights[min(last, len(weights) - 1)]))
    return least
