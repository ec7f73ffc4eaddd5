"""In which order the blocks of all matrices are loaded, so that every prefix of the order is a good model.

An order lists matrix numbers; the ``j``-th time a matrix occurs stands for its block ``j`` (block 0, which every matrix
always has, is not listed).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

LossFn = Callable[[np.ndarray], Any]
Progress = Callable[[int, int], None] | None


def _check_sizes(levels: int, matrices: int) -> None:
    if levels < 1 or matrices < 1:
        raise ValueError(f"levels and matrices must be >= 1, got {levels} and {matrices}")


def levelwise_order(
    loss_fn: LossFn,
    levels: int,
    matrices: int,
    *,
    block_bytes: ArrayLike | None = None,
    progress: Progress = None,
) -> np.ndarray:
    """Level by level: each matrix alone gets its next block, and those that help most come first.

    For level ``b`` all matrices have ``b`` blocks; ``loss_fn`` is evaluated with each of them in turn at ``b + 1``, and
    the level is sorted by falling gain. That is the order of the paper, whose loss is perplexity on 32 calibration
    sequences. A NaN loss counts as the matrix's loss at the next level plus the largest of its own level.

    Args:
      loss_fn: int32 ``[matrices]``, blocks of each matrix, to a loss; lower is better.
      levels: blocks that every matrix has.
      matrices: number of matrices.
      block_bytes: ``[matrices]``; when given, a level is sorted by gain per byte, which matters where blocks differ
        in size and which the reference leaves out. It costs one evaluation more per level.
      progress: called with (evaluations done, in all).

    Returns:
      int32 ``[matrices * (levels - 1)]``.

    Raises:
      ValueError: sizes below 1, only NaN at one level, or NaN at the last level.
    """
    _check_sizes(levels, matrices)
    scores = np.zeros((levels - 1, matrices))
    base = np.zeros(levels - 1)
    extra = 0 if block_bytes is None else 1
    for level in range(1, levels):
        start = np.full(matrices, level, np.int32)
        if block_bytes is not None:
            base[level - 1] = float(loss_fn(start))
        for matrix in range(matrices):
            raised = start.copy()
            raised[matrix] += 1
            scores[level - 1, matrix] = float(loss_fn(raised))
            if progress is not None:
                done = (level - 1) * (matrices + extra) + matrix + 1 + extra
                progress(done, (levels - 1) * (matrices + extra))
    scores = _without_nan(scores)
    if block_bytes is not None:
        scores = (scores - np.nan_to_num(base, nan=0.0, posinf=0.0)[:, None]) / np.asarray(block_bytes, np.float64)
    return np.argsort(scores, axis=1, kind="stable").astype(np.int32).reshape(-1)


def _without_nan(scores: np.ndarray) -> np.ndarray:
    scores = scores.copy()
    for level in reversed(range(len(scores))):
        bad = np.isnan(scores[level])
        if not bad.any():
            continue
        if bad.all():
            raise ValueError(f"every loss of level {level + 1} is NaN: nothing to sort by")
        if level == len(scores) - 1:
            raise ValueError(f"the loss is NaN at the last level for matrices {np.flatnonzero(bad).tolist()}")
        scores[level, bad] = scores[level + 1, bad] + np.nanmax(scores[level])
    return scores


def greedy_order(
    loss_fn: LossFn, levels: int, matrices: int, block_bytes: ArrayLike, *, progress: Progress = None
) -> np.ndarray:
    """Block by block: the one with the largest gain per byte, measured anew after every pick.

    ``O(matrices² levels)`` evaluations, so for few matrices.

    Args:
      loss_fn, levels, matrices, progress: as in :func:`levelwise_order`.
      block_bytes: ``[matrices]``.

    Raises:
      ValueError: as :func:`levelwise_order`; also when all remaining losses are NaN.
    """
    _check_sizes(levels, matrices)
    size = np.asarray(block_bytes, np.float64)
    now, order = np.ones(matrices, np.int32), []
    total = matrices * (levels - 1)
    current = float(loss_fn(now))
    while len(order) < total:
        losses = np.full(matrices, np.nan)
        for matrix in np.flatnonzero(now < levels):
            raised = now.copy()
            raised[matrix] += 1
            losses[matrix] = float(loss_fn(raised))
        if np.isnan(losses).all():
            raise ValueError("every remaining loss is NaN: nothing to sort by")
        best = int(np.nanargmin((losses - (0.0 if np.isnan(current) else current)) / size))
        now[best] += 1
        current = losses[best]
        order.append(best)
        if progress is not None:
            progress(len(order), total)
    return np.asarray(order, np.int32)


def order_from_gains(gains: ArrayLike, block_bytes: ArrayLike, *, levelwise: bool = False) -> np.ndarray:
    """Orders blocks by gain per byte under the rule that a matrix's blocks come in turn.

    The gains of a matrix are first made falling by pooling neighbours that are not (isotonic regression): a block that
    seems useless must not hold back a useful one behind it.

    Args:
      gains: ``[matrices, levels - 1]``, by how much the loss falls with each block.
      block_bytes: ``[matrices]``.
      levelwise: finish each level before the next, as the paper does; otherwise levels mix.

    Returns:
      int32 ``[matrices * (levels - 1)]``.

    Raises:
      ValueError: gains of another shape, or NaN.
    """
    gains, size = np.asarray(gains, np.float64), np.asarray(block_bytes, np.float64)
    if gains.ndim != 2 or size.shape != gains.shape[:1]:
        raise ValueError(f"gains must be [matrices, levels - 1] for block_bytes {size.shape}, got {gains.shape}")
    if np.isnan(gains).any():
        raise ValueError(f"gains of matrices {np.flatnonzero(np.isnan(gains).any(axis=1)).tolist()} are NaN")
    rate = gains / size[:, None]
    if not levelwise:
        rate = _falling(rate)
    matrix, level = np.meshgrid(*(np.arange(extent) for extent in gains.shape), indexing="ij")
    keys = (
        (matrix.ravel(), -rate.ravel(), level.ravel()) if levelwise else (matrix.ravel(), level.ravel(), -rate.ravel())
    )
    return matrix.ravel()[np.lexsort(keys)].astype(np.int32)


def _falling(rate: np.ndarray) -> np.ndarray:
    """Nearest non-increasing rows: ``min over i <= b of max over j >= b of mean(rate[i..j])``."""
    matrices, count = rate.shape
    sums = np.concatenate([np.zeros((matrices, 1)), np.cumsum(rate, axis=1)], axis=1)
    first, last = np.arange(count)[:, None], np.arange(count)[None, :]
    means = np.where(last >= first, (sums[:, None, 1:] - sums[:, :-1, None]) / np.maximum(last - first + 1, 1), -np.inf)
    tails = np.maximum.accumulate(means[:, :, ::-1], axis=2)[:, :, ::-1]
    return np.minimum.accumulate(np.where(last >= first, tails, np.inf), axis=1)[:, np.arange(count), np.arange(count)]
