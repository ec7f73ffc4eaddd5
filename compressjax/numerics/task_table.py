"""Which worker multiplies which blocks of a product whose blocks differ in cost; plain numpy, once per shape.

Tiles of the output that are handed out whole leave workers idle in the last wave. Cutting the inner dimension too gives
every worker the same load within one block (Osama et al., 2023, "Stream-K", arXiv 2301.03598); tiles cut that way are
summed from parts afterwards, always in the order of the inner dimension, so that results repeat bit for bit.
"""

from typing import NamedTuple

import numpy as np


class TaskTable(NamedTuple):
    """Tasks in the order of tiles and inner blocks.

    Attributes:
      tasks: int32 ``[tasks, 5]`` of (worker, tile row, tile column, first block, block after the last).
      parts: int32 ``[tile rows * tile columns + 1]``: tile ``t`` is the sum of tasks ``parts[t] .. parts[t+1]-1``, in
        this order; more than one where the tile was cut.
      load: int64 ``[workers]``, total cost of each worker.
    """

    tasks: np.ndarray
    parts: np.ndarray
    load: np.ndarray


def plan_tasks(
    rows: int,
    cols: int,
    blocks: int,
    n_hi: int,
    workers: int,
    *,
    tile: tuple[int, int] = (128, 128),
    cost_hi: int = 2,
    cost_lo: int = 1,
    split: bool = True,
) -> TaskTable:
    """Hands out the blocks of ``[rows, K] x [K, cols]``.

    Args:
      rows, cols: of the output.
      blocks: inner blocks, of which the first ``n_hi`` cost ``cost_hi`` each and the others ``cost_lo``.
      n_hi: wide blocks.
      workers: programs that run at once.
      tile: output rows and columns of a tile.
      cost_hi, cost_lo: integer costs.
      split: cut tiles along the inner dimension, each load then within one block of the mean; otherwise whole tiles go
        to the least loaded worker.

    Raises:
      ValueError: for a count that is not positive, or ``n_hi`` outside ``0 .. blocks``.
    """
    counts = {"rows": rows, "cols": cols, "blocks": blocks, "workers": workers, "cost_hi": cost_hi, "cost_lo": cost_lo}
    for name, value in (*counts.items(), ("tile[0]", tile[0]), ("tile[1]", tile[1])):
        if value < 1:
            raise ValueError(f"plan_tasks: {name} must be >= 1, got {value}")
    if not 0 <= n_hi <= blocks:
        raise ValueError(f"plan_tasks: n_hi must be in 0..{blocks}, got {n_hi}")
    tile_cols = -(-cols // tile[1])
    tiles = -(-rows // tile[0]) * tile_cols
    cost = np.where(np.arange(blocks) < n_hi, cost_hi, cost_lo).astype(np.int64)
    if split:
        worker = _in_equal_runs(np.tile(cost, tiles), workers)
    else:
        # Tiles cost the same, so the least loaded worker is the next one in turn.
        worker = np.repeat(np.arange(tiles) % workers, blocks)
    return _table(worker.reshape(tiles, blocks), cost, workers, tile_cols)


def _in_equal_runs(cost, workers):
    """Worker of every unit of a line of costs: the one in whose share of the total the unit's middle lies."""
    middle = 2 * np.cumsum(cost) - cost
    return np.minimum(middle * workers // (2 * int(cost.sum())), workers - 1)


def _table(worker, cost, workers, tile_cols):
    tiles, blocks = worker.shape
    starts = np.ones((tiles, blocks), bool)
    starts[:, 1:] = worker[:, 1:] != worker[:, :-1]
    tile, first = np.nonzero(starts)
    stop = np.append(first[1:], blocks)
    stop[np.append(tile[1:] != tile[:-1], True)] = blocks
    tasks = np.stack([worker[tile, first], tile // tile_cols, tile % tile_cols, first, stop], axis=1)
    parts = np.concatenate([[0], np.cumsum(np.bincount(tile, minlength=tiles))])
    load = np.bincount(worker.reshape(-1), weights=np.tile(cost, tiles), minlength=workers)
    return TaskTable(tasks.astype(np.int32), parts.astype(np.int32), load.astype(np.int64))
