"""Sample one column from each row of scores: from the K highest in order, or from a whole vocabulary in any order.

Knows nothing of requests. The filters are applied in the order of `transformers`, each to the columns that the previous
one left: the `top_k` highest; the fewest of the highest whose probabilities reach `top_p`; those with at least `min_p`
times the largest probability. The result in a row depends on that row alone.
"""

import numpy as np

from server.arrays import Floats, Floats64, Ids

BLOCK = 256  # columns in each partial sum


def sample_sorted(
    scores: Floats, *, temperature: Floats64, top_k: Ids, top_p: Floats64, min_p: Floats64, uniforms: Floats64
) -> Ids:
    """Sample a column (n,) from each row of `scores` (n, c), which are in descending order.

    The other arguments are (n,). `uniforms` are random numbers in [0, 1).
    """
    with np.errstate(over="ignore"):  # the weight of -inf is 0, the largest is 1
        weights = np.exp((scores - scores.max(axis=1, keepdims=True)) / temperature[:, None])  # (n, c)
    weights[np.arange(scores.shape[1]) >= top_k[:, None]] = 0
    sums = weights.cumsum(axis=1)
    beyond = (sums - weights >= top_p[:, None] * sums[:, -1:]) & (top_p[:, None] < 1)
    weights[beyond | (weights < min_p[:, None])] = 0
    sums = weights.cumsum(axis=1)
    return _first_above(sums, uniforms * sums[:, -1])


def sample_unsorted(
    scores: Floats, *, temperature: Floats64, top_k: Ids, top_p: Floats64, min_p: Floats64, uniforms: Floats64
) -> Ids:
    """Sample a column (n,) from each row of `scores` (n, c), which may be in any order.

    Columns with equal scores pass a filter together or not at all. Only the filters of a row sort scores, and only
    those that may pass.
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
    smallest = np.array([_smallest_weight(row, *limit) for row, *limit in limits], np.float32)
    if smallest.any():
        used[used < smallest[:, None]] = 0
    sums = weights.reshape(count, blocks, BLOCK).sum(axis=2).cumsum(axis=1, dtype=np.float64)  # (n, blocks)
    targets = uniforms * sums[:, -1]
    rows, block = np.arange(count), _first_above(sums, targets)
    before = np.where(block, sums[rows, block - 1], 0.0)
    inside = weights.reshape(count, blocks, BLOCK)[rows, block].cumsum(axis=1, dtype=np.float64)  # (n, BLOCK)
    return block * BLOCK + _first_above(inside, targets - before)


def _first_above(sums: Floats64, targets: Floats64) -> Ids:
    """The first column (n,) of each row of cumulative sums (n, c) that exceeds the target (n,).

    If none does, the last column with a weight.
    """
    columns = np.count_nonzero(sums <= targets[:, None], axis=1)
    # A random number just below 1 can be rounded so that the target is the whole sum.
    return np.asarray(np.minimum(columns, np.count_nonzero(sums < sums[:, -1:], axis=1)))


def _smallest_weight(weights: Floats, top_k: int, top_p: float, min_p: float) -> float:
    """The smallest of the `weights` (c,), whose maximum is 1, that passes the filters; 0 if all do."""
    smallest = min_p
    if top_k < len(weights):
        weights = np.partition(weights, -top_k)[-top_k:]
        smallest = max(smallest, float(weights[0]))
    if top_p < 1:
        total = float(weights.sum(dtype=np.float64))
        # All smaller weights together are no more than the part that `top_p` cuts off.
        weights = weights[weights >= (1 - top_p) * total / len(weights)]
        weights = np.sort(weights)[::-1]
        last = int(np.searchsorted(weights.cumsum(dtype=np.float64), top_p * total))
        smallest = max(smallest, float(weights[min(last, len(weights) - 1)]))
    return smallest
