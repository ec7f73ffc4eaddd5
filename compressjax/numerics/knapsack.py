"""One level per item at the least total value, under a limit on the total weight: the multiple-choice knapsack.

    minimise  sum_i value[i, c_i]    subject to  sum_i weight[i, c_i] <= capacity

by dynamic programming over the weight used: exact for integer weights, in time ``items * levels * capacity``. It runs
on the host in 64-bit integers, since costs in bytes outgrow 32 bits.
"""

from typing import NamedTuple

import numpy as np


class Choice(NamedTuple):
    """A solution.

    Attributes:
      levels: int64 ``[items]``, the level of every item.
      value: total, in the dtype of the values.
      weight: total, an integer.
    """

    levels: np.ndarray
    value: float | int
    weight: int


def multiple_choice_knapsack(values: np.ndarray, weights: np.ndarray, capacity: int) -> Choice | None:
    """The best choice of a level for every item.

    Args:
      values: int64 or float64 ``[items, levels]``, finite.
      weights: integers >= 0 ``[items, levels]``; a weight above ``capacity`` rules the level out.
      capacity: limit on the sum of weights.

    Returns:
      A choice of least value, and among those of least weight; None when no choice fits.

    Raises:
      ValueError: shapes differ, no levels, a negative weight or capacity, a value that is not finite.
      TypeError: weights are not integers.
    """
    values, weights = np.asarray(values), np.asarray(weights)
    if values.ndim != 2 or values.shape != weights.shape or not values.size:
        raise ValueError(f"values and weights must share a shape [items, levels], got {values.shape} {weights.shape}")
    if not np.issubdtype(weights.dtype, np.integer):
        raise TypeError(f"weights must be integers, got {weights.dtype}")
    if capacity < 0 or weights.min() < 0:
        raise ValueError(f"weights and capacity must be >= 0, got {weights.min()} and {capacity}")
    if not np.all(np.isfinite(values)):
        raise ValueError("values must be finite; rule a level out by a weight above the capacity")
    exact = np.issubdtype(values.dtype, np.integer)
    dtype = np.int64 if exact else np.float64
    # Half of the largest integer: adding a value to it cannot wrap, and no true total comes near.
    never = np.iinfo(np.int64).max // 2 if exact else np.inf
    if exact and np.abs(values.astype(object)).max(axis=1).sum() >= never:
        raise ValueError("the sum of the largest values does not fit 62 bits")
    best = np.full(capacity + 1, never, dtype)
    best[0] = 0
    taken = np.empty((len(values), capacity + 1), np.int32)
    for i, (row, weight) in enumerate(zip(values.astype(dtype), weights, strict=True)):
        new = np.full_like(best, never)
        chosen = np.full(capacity + 1, -1, np.int32)
        for level, (value, w) in enumerate(zip(row, weight, strict=True)):
            if w > capacity:
                continue
            reached = best[: capacity + 1 - w]
            total = np.where(reached < never, reached + value, never)
            better = total < new[w:]
            new[w:][better] = total[better]
            chosen[w:][better] = level
        best, taken[i] = new, chosen
    at = int(np.argmin(best))
    if best[at] >= never:
        return None
    value, weight_used = best[at], at
    levels = np.empty(len(values), np.int64)
    for i in reversed(range(len(values))):
        levels[i] = taken[i, at]
        at -= int(weights[i, levels[i]])
    return Choice(levels, value.item(), weight_used)
