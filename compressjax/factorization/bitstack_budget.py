"""Bytes of every prefix of the loading order, and the longest that fits."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class BudgetTable(NamedTuple):
    """All models that one order gives, from one block per matrix to all.

    Attributes:
      bytes: int64 ``[prefixes]``, of the whole model, rising.
      levels: int32 ``[prefixes, matrices]``, blocks of each matrix, never falling along the prefixes.
    """

    bytes: np.ndarray
    levels: np.ndarray


class Blocks(NamedTuple):
    """Blocks by matrix and level, int64 ``[count]`` each."""

    matrix: np.ndarray
    level: np.ndarray


def budget_table(order: ArrayLike, block_bytes: ArrayLike, base_bytes: int) -> BudgetTable:
    """Bytes and levels after each block of an order.

    Args:
      order: integers ``[matrices * (levels - 1)]``, every matrix equally often.
      block_bytes: integers ``[matrices]``.
      base_bytes: what is there besides blocks.

    Raises:
      ValueError: an order that names a matrix that does not exist or leaves out a level of one, or sizes below 1.
    """
    order, size = np.asarray(order, np.int64), np.asarray(block_bytes, np.int64)
    if size.ndim != 1 or size.size < 1 or size.min() < 1 or base_bytes < 0:
        raise ValueError(
            f"block_bytes must be [matrices] of positive sizes and base_bytes >= 0, got {size}, {base_bytes}"
        )
    if order.ndim != 1 or (order.size and not 0 <= order.min() <= order.max() < size.size):
        raise ValueError(f"order must hold numbers of matrices in 0..{size.size - 1}")
    counts = np.bincount(order, minlength=size.size)
    if (counts != counts[0]).any():
        raise ValueError(f"order leaves out levels: matrices occur {counts.min()} to {counts.max()} times")
    steps = np.zeros((order.size + 1, size.size), np.int32)
    steps[0] = 1
    steps[np.arange(order.size) + 1, order] = 1
    total = base_bytes + size.sum() + np.concatenate([[0], np.cumsum(size[order])])
    return BudgetTable(total.astype(np.int64), np.cumsum(steps, axis=0, dtype=np.int32))


def levels_for_budget(table: BudgetTable, max_bytes: int) -> np.ndarray:
    """Levels int32 ``[matrices]`` of the largest model of at most ``max_bytes``.

    Raises:
      ValueError: not even one block of each matrix fits.
    """
    if max_bytes < table.bytes[0]:
        raise ValueError(
            f"{max_bytes:,} bytes are not enough: with one block per matrix the model takes {table.bytes[0]:,}"
        )
    return table.levels[np.searchsorted(table.bytes, max_bytes, side="right") - 1]


def blocks_between(low: ArrayLike, high: ArrayLike) -> Blocks:
    """The blocks that ``high`` has and ``low`` lacks: what to load on the way up, what to drop on the way down.

    Args:
      low, high: levels ``[matrices]``.
    """
    low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
    count = np.maximum(high - low, 0)
    matrix = np.repeat(np.arange(low.size), count)
    first = np.cumsum(count) - count
    return Blocks(matrix, np.arange(count.sum()) - np.repeat(first, count) + np.repeat(low, count))
