"""Uncertainty of evaluation figures, and paired comparison of two models on the same items.

Two models read the same windows or answer the same questions, so their difference is known far better than either
figure: the spread between items cancels.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class PairedDifference(NamedTuple):
    """Mean difference between two models over the same items.

    Attributes:
      mean: of ``other - base``.
      standard_error: of the mean; None with one item.
      count: number of items.
    """

    mean: float
    standard_error: float | None
    count: int


class McNemar(NamedTuple):
    """Two models' right and wrong answers to the same questions (McNemar, 1947).

    Attributes:
      only_base, only_other: questions that just one of the models answers rightly.
      agreement: share of questions both answer rightly or both wrongly.
      p_value: two-sided exact binomial probability of a split at least as uneven were the models equally good.
    """

    only_base: int
    only_other: int
    agreement: float
    p_value: float


def paired_difference(base: ArrayLike, other: ArrayLike) -> PairedDifference:
    """Mean of ``other - base`` with its standard error.

    Args:
      base, other: numbers ``[N]``, the same items in the same order, such as two results' ``window_nll``.

    Raises:
      ValueError: shapes that are not equal and ``[N]`` with N at least 1, or a number that is not finite.

    Example:
      >>> paired_difference([1.0, 2.0, 3.0], [1.5, 2.5, 3.5])
      PairedDifference(mean=0.5, standard_error=0.0, count=3)
    """
    first, second = _pair(base, other, np.float64)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("base and other must be finite")
    difference = second - first
    error = ratio_standard_error(difference, np.ones(len(difference)))
    return PairedDifference(float(difference.mean()), error, len(difference))


def mcnemar(base: ArrayLike, other: ArrayLike) -> McNemar:
    """Whether two models differ in accuracy on the same questions.

    Args:
      base, other: bool ``[N]``, right or wrong, the same questions in the same order.

    Raises:
      ValueError: shapes that are not equal and ``[N]`` with N at least 1.

    Example:
      >>> mcnemar([True, True, True, False], [True, False, False, False])
      McNemar(only_base=2, only_other=0, agreement=0.5, p_value=0.5)
    """
    first, second = _pair(base, other, np.bool_)
    only_base, only_other = int((first & ~second).sum()), int((~first & second).sum())
    differing = only_base + only_other
    tail = sum(math.comb(differing, k) for k in range(min(only_base, only_other) + 1))
    # Integers as long as possible: 2**differing passes the range of floats on large sets.
    p_value = min(1.0, 2 * tail / 2**differing)
    return McNemar(only_base, only_other, float((first == second).mean()), p_value)


def binomial_standard_error(accuracy: float, count: int) -> float:
    """Standard error of a share of right answers, ``sqrt(a (1 - a) / n)``.

    Args:
      accuracy: between 0 and 1.
      count: number of questions, at least 1.
    """
    return math.sqrt(accuracy * (1 - accuracy) / count)


def ratio_standard_error(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """Standard error of ``sum(sums) / sum(counts)``, items taken as independent (Cochran, 1977, section 6.3).

    Args:
      sums: ``[N]``, total of each item.
      counts: ``[N]``, weight of each item; items with none are left out.

    Returns:
      The standard error, or None with fewer than two items; infinite when an item's total is.
    """
    used = counts > 0
    sums, counts = sums[used], counts[used]
    n = len(sums)
    if n < 2:
        return None
    if not np.isfinite(sums).all():
        return math.inf
    residual = sums - counts * (sums.sum() / counts.sum())
    return float(np.sqrt((residual**2).sum() * n / (n - 1)) / counts.sum())


def _pair(base: ArrayLike, other: ArrayLike, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(base, dtype), np.asarray(other, dtype)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(f"base and other must have one shape [N >= 1], got {first.shape} and {second.shape}")
    return first, second
